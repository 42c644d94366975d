"""Their half of a receipt: transformers, in a process of its own, answers what our model was asked.

    python -m behemoth.export.receipt EVIDENCE...

Each EVIDENCE directory holds `questions.json` and `answers.safetensors` (see `reference`); the findings go
into its `findings.json`. The oracle is transformers' eager attention in fp32 without a cache. Its cached path
is another computation with rounding of its own: it is reported, and not judged. Our model code is not
imported here.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

CACHED_STEPS = 8


def finding(name: str, ok: bool, value: Any, limit: Any = None, note: str = "") -> dict[str, Any]:
    """One line of the receipt."""
    return {"name": name, "value": value, "limit": limit, "ok": ok, "note": note}


@torch.no_grad()
def answer(evidence: Path) -> list[dict[str, Any]]:
    """Every finding about one directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    asked = json.loads((evidence / "questions.json").read_text(encoding="utf-8"))
    ours = load_file(evidence / "answers.safetensors")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        asked["directory"], dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model, loading = loaded
    tokenizer = AutoTokenizer.from_pretrained(asked["tokenizer"])
    model.eval()

    findings = [
        _loading(loading),
        _settings(model.config, asked["config"]),
        _tensors(model, asked["tensors"]),
    ]
    for name, row in asked["rows"].items():
        theirs = _answer(model, row, asked["watched"][name])
        expected = {part: ours[f"{name}.{part}"] for part in theirs}
        findings.append(_logits(name, theirs, expected, asked["limit"], asked["notes"][name]))
    generation = GenerationConfig(
        do_sample=False,
        use_cache=False,
        max_new_tokens=max(1, len(asked["greedy"]["answer"])),
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id or 0,
    )
    findings += [
        _greedy(model, asked["greedy"], generation),
        _cached(model, asked["rows"]["text"], asked["chunk"]),
    ]
    findings.append(_texts(tokenizer, asked["texts"]))
    if asked["special"]:
        findings.append(_special(tokenizer, model.generation_config, asked["special"]))
    if asked["chat"]:
        findings.append(_chat(tokenizer, asked["chat"]))
    return findings


def _loading(loading: dict[str, Any]) -> dict[str, Any]:
    """Whether every tensor of the file has a place and every place a tensor."""
    faults = [
        f"{kind[:-5]}: {key}" for kind, keys in loading.items() if kind.endswith("_keys") for key in keys
    ]
    return finding("load", not faults, len(faults), 0, "; ".join(map(str, faults[:4])))


def _settings(config: Any, expected: dict[str, Any]) -> dict[str, Any]:
    """The settings as transformers understood them."""
    wrong = [
        f"{key}: {value!r} was meant, {getattr(config, key, None)!r} was read"
        for key, value in expected.items()
        if key not in ("architectures", "behemoth")
        and not _same(getattr(config, key, None), value)
        and not (value is None and key.endswith("_token_id"))
    ]
    return finding("settings", not wrong, len(wrong), 0, "; ".join(wrong[:4]))


def _same(read: Any, meant: Any) -> bool:
    """Equal, where a mapping may hold more than was meant."""
    if isinstance(meant, dict):
        return isinstance(read, dict) and all(_same(read.get(key), value) for key, value in meant.items())
    return read == meant


def _tensors(model: Any, expected: dict[str, str]) -> dict[str, Any]:
    """Every tensor, bit for bit."""
    theirs = model.state_dict()
    wrong = [name for name, sha in expected.items() if name not in theirs or digest(theirs[name]) != sha]
    note = f"first that differs: {wrong[0]}" if wrong else f"{len(expected)} tensors, bit for bit"
    return finding("tensors", not wrong, len(wrong), 0, note)


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().data).hexdigest()


def _answer(model: Any, row: list[int], spots: list[int]) -> dict[str, Tensor]:
    """Logits and the output of every layer at `spots`, as `reference` keeps them."""
    layers: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, y: layers.append(y[0, spots]))
        for layer in model.model.layers
    ]
    logits = model(torch.tensor([row]), use_cache=False, logits_to_keep=torch.tensor(spots)).logits[0]
    for hook in hooks:
        hook.remove()
    return {"logits": logits, "layers": torch.stack(layers)}


def _logits(
    name: str, theirs: dict[str, Tensor], ours: dict[str, Tensor], limit: float, note: str
) -> dict[str, Any]:
    """The largest difference of a logit; when it is too large, the first layer whose output differs."""
    limit *= max(1.0, float(ours["logits"].abs().max()))
    largest = _largest(theirs["logits"], ours["logits"])
    if not (ok := largest <= limit):
        note = f"{_where(theirs, ours, limit)}; {note}"
    return finding(f"logits, {name}", ok, largest, limit, note)


def _where(theirs: dict[str, Tensor], ours: dict[str, Tensor], limit: float) -> str:
    for layer, (a, b) in enumerate(zip(theirs["layers"], ours["layers"], strict=True)):
        if (largest := _largest(a, b)) > limit:
            return f"first differs after layer {layer} (by {largest:.2g})"
    return "every layer agrees; differs in the final norm or lm_head"


def _largest(a: Tensor, b: Tensor) -> float:
    """Largest difference; infinite where one side is not a number."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().nan_to_num(nan=float("inf")).max())


def _greedy(model: Any, greedy: dict[str, list[int]], generation: Any) -> dict[str, Any]:
    prompt = torch.tensor([greedy["prompt"]])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=generation)
    theirs = out[0, len(greedy["prompt"]) :].tolist()
    ok = theirs == greedy["answer"]
    note = "" if ok else f"ours {greedy['answer']}, theirs {theirs}"
    return finding(
        "greedy answer",
        ok,
        sum(a == b for a, b in zip(theirs, greedy["answer"], strict=False)),
        len(greedy["answer"]),
        note,
    )


def _cached(model: Any, row: list[int], chunk: int) -> dict[str, Any]:
    """Their cached decode across a chunk's edge, against their own full forward. Not judged."""
    row = row[: chunk + CACHED_STEPS // 2]
    start = max(1, len(row) - CACHED_STEPS)
    full = model(torch.tensor([row]), use_cache=False).logits[0]
    out = model(torch.tensor([row[:start]]), use_cache=True)
    largest = 0.0
    for position in range(start, len(row)):
        out = model(torch.tensor([[row[position]]]), past_key_values=out.past_key_values, use_cache=True)
        largest = max(largest, _largest(out.logits[0, -1], full[position]))
    note = "transformers' cached decode against its own full forward; reported, not judged"
    return finding("cached logits", True, largest, None, note)


def _texts(tokenizer: Any, texts: list[dict[str, Any]]) -> dict[str, Any]:
    """Encoding and decoding of plain text, special-looking text included."""
    wrong = []
    for case in texts:
        ids = tokenizer.encode(case["text"], add_special_tokens=False)
        if ids != case["ids"]:
            wrong.append(f"{case['text'][:40]!r} is encoded as {ids[:8]}, ours {case['ids'][:8]}")
        elif tokenizer.decode(case["ids"], skip_special_tokens=False) != case["text"]:
            wrong.append(f"{case['text'][:40]!r} does not decode to itself")
    return finding("tokenizer", not wrong, len(wrong), 0, "; ".join(wrong[:3]))


def _special(tokenizer: Any, generation: Any, special: dict[str, Any]) -> dict[str, Any]:
    found = {
        "bos_token_id": (special["bos_token_id"], tokenizer.bos_token_id, generation.bos_token_id),
        "eos_token_id": (special["eos_token_id"], special["eos_token_id"], generation.eos_token_id),
        "pad_token_id": (special["pad_token_id"], tokenizer.pad_token_id, generation.pad_token_id),
        "eos_token": (special["eos_id"], tokenizer.eos_token_id, special["eos_id"]),
    }
    wrong = [
        f"{name}: meant {meant}, tokenizer {a}, generation_config {b}"
        for name, (meant, a, b) in found.items()
        if not meant == a == b
    ]
    return finding("special tokens", not wrong, len(wrong), 0, "; ".join(wrong))


def _chat(tokenizer: Any, chat: dict[str, Any]) -> dict[str, Any]:
    """A formatted conversation, id by id.

    The directory says `split_special_tokens`, so that text from users cannot forge a special token; a
    template is text too, so whoever formats with it has to allow its special tokens, as here.
    """
    theirs = tokenizer.apply_chat_template(
        chat["messages"],
        add_generation_prompt=True,
        return_dict=False,
        tokenizer_kwargs={"split_special_tokens": False},
    )
    ok = theirs == chat["ids"]
    note = "" if ok else f"theirs {theirs}, ours {chat['ids']}; "
    note += "formatted with tokenizer_kwargs={'split_special_tokens': False}"
    return finding("chat template", ok, int(not ok), 0, note)


def main(directories: list[str]) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for directory in directories:
        findings = answer(Path(directory))
        (Path(directory) / "findings.json").write_text(json.dumps(findings), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
