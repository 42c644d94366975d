"""A model as one GGUF file, for llama.cpp, published only after it was read back and gave the same answers.

Weights are written as they are: fp32 as fp32, bf16 as bf16 (norms and routers always in fp32, as llama.cpp wants
them). The file is written beside its place through the `gguf` library, read back into a model that follows
llama.cpp's rules (`llama_cpp`), compared with ours tensor by tensor and asked what ours is asked, and then renamed.
The same model gives the same bytes. Where llama.cpp computes the same function only up to some token, that is the
context length in the file, and its description, its receipt and whoever prints them say so.

The tokenizer is byte-level BPE with Qwen2's or Llama 3's expression, which llama.cpp knows by name. What it cannot
express (a normaliser, added tokens that are text) is refused.

Source: llama.cpp's conversion scripts; docs/gguf.md says what was seen when llama.cpp itself ran such files. Left out:
quantisation (`llama-quantize` makes it of these files), and Llama 4's own expression, which llama.cpp approximates.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import fsync_path, sha256, write_json
from behemoth.export.hf import failures
from behemoth.export.llama_cpp import (
    PIECES,
    ROPE_FACTORS,
    SIZES,
    SKIPS_MERGES,
    SPARSE_SIZES,
    Limits,
    as_read,
    check_expressible,
    encoder_of,
    read_back,
)
from behemoth.export.receipt import finding
from behemoth.export.reference import BEYOND, LIMIT, PASSAGE, TEXTS
from behemoth.model.config import ModelConfig
from behemoth.model.open import Opened
from behemoth.model.transformer import Transformer, rope_frequencies
from behemoth.model.weights import hf_name
from behemoth.text.chat import chat_names, jinja
from behemoth.text.tokenizer import Tokenizer

FLOATS = {"norm_eps", "rope_theta"}
KINDS = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}
EOM_NAMES = ("<|eom|>", "<|eom_id|>")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's words."""

    pre: str  # its name for the expression that cuts text into pieces
    tokens: list[str]
    types: list[int]
    merges: list[str]
    ids: dict[str, int]  # of bos, eos, eot, eom, padding
    template: str | None


def write_gguf(opened: Opened, path: Path) -> dict[str, Any]:
    """Write `opened` to the new file `path` and return its receipt, which is the caller's to keep.

    InputError: `path` exists, or llama.cpp cannot express the model or its tokenizer. AnswerIsNo: what was read back
    differs; nothing is published.
    """
    with writing(opened, path) as receipt:
        return receipt


@contextmanager
def writing(opened: Opened, path: Path) -> Iterator[dict[str, Any]]:
    """`write_gguf` with a look in between: the file is published when the block ends, and not if it raises."""
    if path.exists():
        raise InputError(f"{path} already exists; export to a new name, or move that one away")
    limits = check_expressible(opened.model.config)
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    vocabulary = vocabulary_of(tokenizer, opened.model.config.vocab_size)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(opened, limits, vocabulary, temporary)
        fsync_path(temporary)
        receipt = _receipt(opened, limits, vocabulary, tokenizer, temporary, path.name)
        if receipt["verdict"] != "match":
            evidence = path.with_name(f"{path.name}.receipt-failed.json")
            write_json(evidence, receipt)
            lines = "\n".join(f"  {line}" for line in failures(receipt))
            raise AnswerIsNo(
                f"{path} was not published: read back it is another model\n{lines}\n  findings: {evidence}"
            )
        yield receipt
        os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- writing


def _write(opened: Opened, limits: Limits, vocabulary: Vocabulary, path: Path) -> None:
    model, config = opened.model, opened.model.config
    writer = gguf.GGUFWriter(path, limits.architecture)
    writer.add_type("model")
    writer.add_name(opened.name)
    writer.add_description(str(limits))
    writer.add_file_type(KINDS[model.embed_tokens.weight.dtype][1])
    writer.add_string("behemoth.source_sha256", opened.sha256)
    writer.add_uint32("behemoth.context_length", limits.of)
    if limits.reasons:
        writer.add_array("behemoth.limits", list(limits.reasons))
    _add_settings(writer, config, limits)
    _add_vocabulary(writer, vocabulary)
    for name, tensor in _tensors(model, limits.architecture):
        kind = KINDS[tensor.dtype][0]
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # numpy knows no bf16
        writer.add_tensor(name, bits.numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: gguf.GGUFWriter, config: ModelConfig, limits: Limits) -> None:
    told = as_read(config, limits)
    for theirs, ours in (SIZES | (SPARSE_SIZES if config.num_experts else {})).items():
        key = f"{limits.architecture}.{theirs}"
        writer.add_float32(key, told[ours]) if ours in FLOATS else writer.add_uint32(key, told[ours])
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for part, number in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{part}_token_id", number)
    writer.add_add_bos_token(True)  # a document begins with it, in training and when a text is continued
    writer.add_add_eos_token(False)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _tensors(model: Transformer, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """What the file holds, in order, under the names that the library gives to transformers' names."""
    config = model.config
    family = {"llama4": gguf.MODEL_ARCH.LLAMA4, "llama": gguf.MODEL_ARCH.LLAMA}[architecture]
    names = gguf.get_tensor_name_map(family, config.num_layers)
    for ours, parameter in model.named_parameters():
        theirs = hf_name(ours, config)
        tensor = parameter.detach().cpu()
        if tensor.ndim == 1 or theirs.endswith(".router.weight"):
            tensor = tensor.float()
        if theirs.endswith(".gate_up_proj"):
            gate, up = tensor.transpose(1, 2).chunk(2, dim=1)
            parts = {theirs.replace("gate_up", "gate"): gate, theirs.replace("gate_up", "up"): up}
        elif theirs.endswith(".experts.down_proj"):
            parts = {theirs: tensor.transpose(1, 2)}
        else:
            parts = {theirs.removesuffix(".weight"): tensor}
        for name, part in parts.items():
            found = names.get_name(name)
            assert found is not None, f"the gguf library has no name for {name}"
            yield f"{found}.weight", part
    if config.rope_scaling is not None:
        plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}))
        yield ROPE_FACTORS, plain / rope_frequencies(config)


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """The tokenizer in llama.cpp's words, with names for the ids that only fill the model's vocabulary.

    InputError names what llama.cpp cannot express.
    """
    definition = json.loads(tokenizer.definition)
    pre = _expression(definition)
    added = {token["id"]: token["content"] for token in definition["added_tokens"]}
    special, plain, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    named = {number: (f"[PAD{number}]", unused) for number in range(vocab_size)}
    named |= {number: (text, plain) for text, number in definition["model"]["vocab"].items()}
    named |= {number: (text, special) for number, text in added.items()}
    tokens, types = [text for text, _ in named.values()], [int(kind) for _, kind in named.values()]
    assert len(set(tokens)) == vocab_size, "two ids of one name"
    merges = [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]]
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "eot": tokenizer.eot_id}
    if eom := next((name for name in EOM_NAMES if name in tokenizer.special_tokens), None):
        ids["eom"] = tokenizer.special_tokens[eom]
    ids["padding"] = tokenizer.pad_id
    names = chat_names(tokenizer.special_tokens)
    return Vocabulary(pre, tokens, types, merges, ids, names and jinja(names))


def _expression(definition: Mapping[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer cuts text. InputError: it has none, or does something else as well."""
    model, pre = definition["model"], definition.get("pre_tokenizer") or {}
    problems = []
    if definition.get("normalizer") is not None:
        problems.append(f"its normaliser {definition['normalizer'].get('type')}")
    text = [token["content"] for token in definition["added_tokens"] if not token["special"]]
    problems += [f"its added token {token!r}, which is text" for token in text[:3]]
    odd = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    problems += [f"its {name} = {model[name]!r}" for name in odd if model.get(name)]

    steps = [_step(step) for step in pre.get("pretokenizers", [pre])]
    plain = _step({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    known = {
        name: [_step({"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated"}), plain]
        for name, split in PIECES.items()
    }
    found = next((name for name, wanted in known.items() if steps == wanted), None)
    if found is None:
        problems.append("how it cuts text (by other expressions than Qwen2's and Llama 3's)")
    elif bool(model.get("ignore_merges")) != SKIPS_MERGES[found]:
        problems.append(f"ignore_merges = {model.get('ignore_merges')} with the expression of {found}")
    if problems or found is None:
        raise InputError(
            "this tokenizer cannot be written as GGUF: llama.cpp cannot express "
            + "; nor ".join(problems)
            + "; use a tokenizer made by this package"
        )
    return found


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    """A pre-tokenizer without what says the same by its absence, or does not change ids."""
    return {key: value for key, value in step.items() if value and key != "trim_offsets"}


# ---------------------------------------------------------------------------------------------------------- receipt


def _receipt(
    opened: Opened, limits: Limits, vocabulary: Vocabulary, tokenizer: Tokenizer, path: Path, name: str
) -> dict[str, Any]:
    fields, theirs = read_back(path)
    checks = [
        _settings(theirs.config, as_read(opened.model.config, limits)),
        _same_tensors(opened.model, theirs),
        *_same_answers(opened.model, theirs, tokenizer, limits),
        _same_vocabulary(fields, vocabulary),
        _same_ids(fields, tokenizer),
    ]
    return {
        "verdict": "match" if all(check["ok"] for check in checks) else "mismatch",
        "checks": checks,
        "limits": asdict(limits) | {"reasons": list(limits.reasons), "said": str(limits)},
        "source": {"name": opened.name, "sha256": opened.sha256},
        "files": {name: sha256(path)},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("gguf", "torch", "tokenizers")},
    }


def _settings(config: ModelConfig, expected: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's loader has for settings, its own included. Numbers are kept in fp32."""
    kept = {key: np.float32(value) if key in FLOATS else value for key, value in expected.items()}
    wrong = [
        f"{key}: {value!r} was meant, {getattr(config, key)!r} was read"
        for key, value in kept.items()
        if value != type(value)(getattr(config, key))
    ]
    return finding("settings", not wrong, len(wrong), 0, "; ".join(wrong[:4]))


def _same_tensors(ours: Transformer, theirs: Transformer) -> dict[str, Any]:
    read = dict(theirs.named_parameters())
    wrong = [
        name
        for name, tensor in ours.named_parameters()
        if (x := read.get(name)) is None or x.is_meta or not torch.equal(x, tensor.detach().float().cpu())
    ]
    wrong += [name for name in read if name not in dict(ours.named_parameters())]
    if not torch.allclose(theirs.frequencies, rope_frequencies(ours.config), rtol=1e-6, atol=0):
        wrong.append("the frequencies of RoPE")
    note = f"first that differs: {wrong[0]}" if wrong else f"{len(read)} tensors, bit for bit"
    return finding("tensors", not wrong, len(wrong), 0, note)


@torch.no_grad()
def _same_answers(
    ours: Transformer, theirs: Transformer, tokenizer: Tokenizer, limits: Limits
) -> list[dict[str, Any]]:
    """Logits of both on a row of text, up to the limit (judged) and a little beyond it (reported)."""
    if any(parameter.is_meta for parameter in theirs.parameters()):
        return [finding("logits", False, None, LIMIT, "a tensor is missing")]
    inside = limits.context if limits.reasons else min(64, limits.of)
    passage = tokenizer.encode(PASSAGE)
    row = [tokenizer.bos_id, *(passage * (inside // len(passage) + 2))][: min(inside + BEYOND, limits.of)]
    device, precision = ours.embed_tokens.weight.device, ours.compute_dtype
    ours.compute_dtype = torch.float32
    a = ours.logits(ours(torch.tensor([row], device=device)).hidden_BTD)[0].float().cpu()
    ours.compute_dtype = precision
    apart = (a - theirs.logits(theirs(torch.tensor([row])).hidden_BTD)[0]).abs().nan_to_num(nan=float("inf"))
    limit = LIMIT * max(1.0, float(a[:inside].abs().max()))
    within = float(apart[:inside].max())
    note = f"{inside} tokens of text, under the rules of llama.cpp"
    checks = [finding("logits", within <= limit, within, limit, note)]
    if limits.reasons:
        beyond, note = float(apart[inside:].max()), f"from token {inside} on; reported, not judged"
        checks.append(finding("logits beyond the limit", True, beyond, None, note))
    return checks


def _same_vocabulary(fields: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The tables of the tokenizer as they were meant."""
    meant: dict[str, Any] = {
        "pre": vocabulary.pre,
        "tokens": vocabulary.tokens,
        "token_type": vocabulary.types,
        "merges": vocabulary.merges,
        "add_bos_token": True,
        "add_eos_token": False,
        **{f"{part}_token_id": number for part, number in vocabulary.ids.items()},
    }
    wrong = [key for key, value in meant.items() if fields.get(f"tokenizer.ggml.{key}", []) != value]
    if fields.get("tokenizer.chat_template") != vocabulary.template:
        wrong.append("chat_template")
    return finding("vocabulary", not wrong, len(wrong), 0, "; ".join(wrong[:4]))


def _same_ids(fields: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Texts through a tokenizer made of the file alone: the same ids as ours."""
    encode = encoder_of(fields)
    texts = [*TEXTS, *(text.decode(errors="ignore") for text in tokenizer.token_bytes)]
    wrong = [text for text in texts if encode(text) != tokenizer.encode(text)]
    note = f"{wrong[0][:40]!r} differs" if wrong else f"{len(texts)} texts, every token's own among them"
    return finding("tokenizer", not wrong, len(wrong), 0, note)
