"""What is on the disk: weights that come back expert by expert, and the small files that decide how they are used.

The threads behind these checks: a converter that drops every expert and reports success (NVIDIA/Megatron-LM#5844),
checkpoints with one rank's experts (KempnerInstitute/KempnerForge#202), the same weights giving other logits
(Megatron-Bridge#2381), random text after an export (Lightning-AI/litgpt#1762), a wrong eos id that looked like a
failure of training (marin#4760). Weights are read here with safetensors itself as well as with our reader, so that a
writer and a reader that err alike are still found.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from behemoth.base.files import read_json
from behemoth.base.units import some
from behemoth.doctor.patient import (
    CLOSE,
    Check,
    Finding,
    NotChecked,
    Patient,
    at_most,
    decided,
    relative,
    routings,
    rows_of,
    stacked,
)
from behemoth.doctor.weights import digests
from behemoth.export.hf import write_files
from behemoth.export.receipt import digest
from behemoth.export.reference import CHAT, special_ids
from behemoth.model.open import PADDING
from behemoth.model.transformer import Transformer
from behemoth.model.weights import (
    CONFIG,
    config_from_hf,
    from_hf,
    hf_name,
    load_weights,
    save_weights,
    weight_files,
)
from behemoth.text.chat import encode_chat
from behemoth.text.tokenizer import Tokenizer

MOST_BATCHES = 16  # read in search of a border between documents
GENERATION = "generation_config.json"


def saved_and_loaded(p: Patient) -> Finding:
    """Out and back in through our own hands."""
    directory = p.workspace / "saved"
    if not directory.exists():
        save_weights(p.model, directory)
    return compared(p, directory, p.model)


def exported(p: Patient) -> Finding:
    """In the Hugging Face directory, as any reader of safetensors finds them, and imported again."""
    directory = export_of(p)
    dtype = next(iter(raw(directory).values())).dtype
    model = p.model
    if dtype != model.embed_tokens.weight.dtype:
        model = copy.deepcopy(model).to(dtype)
    return compared(p, directory, model)


def compared(p: Patient, directory: Path, model: Transformer) -> Finding:
    """Hashes of every part: in memory, in the file, and as loaded from it."""
    meant = digests(model)
    tensors, wrong = raw(directory), set()
    back = digests(load_weights(directory))
    for name, sha in meant.items():
        stem, _, index = name.partition("[")
        tensor = tensors.get(hf_name(stem, p.config))
        if tensor is not None:
            tensor = from_hf(stem, tensor, p.config)
        part = tensor if tensor is None or not index else tensor[int(index[:-1])]
        if part is None or digest(part) != sha or back.get(name) != sha:
            wrong.add(name)
    wrong |= back.keys() - meant.keys()
    read = config_from_hf(read_json(directory / CONFIG))
    settings = [
        f"{key} = {getattr(read, key)}, meant {value}"
        for key, value in dict(p.config).items()
        if getattr(read, key) != value
    ]
    named = some(sorted(wrong) + settings)
    return at_most(
        f"{len(meant)} hashes, each expert its own: in memory, in the file, and loaded from it; {CONFIG}",
        len(wrong) + len(settings),
        0,
        f"parts or settings that differ{': ' + named if named else ''}",
        "the file is not the model: look at model/weights.py, and at what wrote or converted the file",
    )


def raw(directory: Path) -> dict[str, Tensor]:
    """What the files hold, under the names they use."""
    found: dict[str, Tensor] = {}
    for file in weight_files(directory):
        found |= load_file(file)
    return {name.removeprefix("language_model."): tensor for name, tensor in found.items()}


def export_of(p: Patient) -> Path:
    """The exported directory; one is written for the examination where there is none."""
    if p.exported is not None:
        return p.exported
    if p.config.score_on != "input":
        raise NotChecked("score_on = 'output' cannot be exported: Hugging Face's Llama 4 scores the input")
    directory = p.workspace / "exported"
    if not directory.exists() and p.tokenizer is None:
        save_weights(p.model, directory)
    elif not directory.exists():
        write_files(p.model, tokenizer_of(p), directory)
    return directory


def tokenizer_of(p: Patient) -> Tokenizer:
    if p.tokenizer is None:
        raise NotChecked("there is no tokenizer yet: the data stage makes it")
    return Tokenizer.load(p.tokenizer)


# ------------------------------------------------------------------------------------------------- transformers


def same_in_transformers(p: Patient) -> list[Finding]:
    """Their model, loaded from the exported directory, on rows that cross chunk borders; router by router."""
    theirs = load_theirs(p, export_of(p))
    rows = p.probe_rows
    clear_B = decided(p.probe, rows)
    rows_clear = [(row, slice(0, int(clear))) for row, clear in enumerate(clear_B) if clear]
    if not rows_clear:
        raise NotChecked("every row begins with a token that a router leaves to rounding")
    with torch.no_grad():
        ours_BTV = p.probe.logits(p.probe(rows).hidden_BTD)
        our_routers = [routing.logits_NE.view(*rows.shape, -1) for routing in routings(p.probe, rows)]
        their_routers: list[Tensor] = []
        hooks = [
            module.register_forward_hook(
                lambda _, __, out: their_routers.append(out[1].view(*rows.shape, -1))
            )
            for name, module in theirs.named_modules()
            if name.endswith(".router")
        ]
        theirs_BTV = theirs(rows, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    logits = max(relative(ours_BTV[row, part], theirs_BTV[row, part]) for row, part in rows_clear)
    routers = max(
        (
            relative(a[row, part], b[row, part])
            for a, b in zip(our_routers, their_routers, strict=True)
            for row, part in rows_clear
        ),
        default=0.0,
    )
    looked_at = f"{rows_of(p)}, chunks of {p.probe.config.chunk_size}, in fp32"
    todo = "the export is not this model for anyone else: compare config.json and the layers one by one"
    meaning = "largest relative difference from transformers"
    findings = [at_most(looked_at, logits, CLOSE, meaning, todo, "logits, transformers")]
    if our_routers:
        findings.append(at_most(looked_at, routers, CLOSE, meaning, todo, "router logits, transformers"))
    return findings


def load_theirs(p: Patient, directory: Path) -> Any:
    """Their model in fp32 with eager attention, and with the probe's short chunks where it has any."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(directory)
    config = getattr(config, "text_config", config)
    config.attention_chunk_size = p.probe.config.chunk_size
    config.floor_scale = p.probe.config.temperature_floor
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().to(p.text_BT.device)


# --------------------------------------------------------------------------------------------- the small files


def vocabulary(p: Patient) -> Finding:
    """Every id the tokenizer can give has a row, and there are hardly more rows than that."""
    tokenizer = tokenizer_of(p)
    size, rows = tokenizer.vocab_size, p.model.embed_tokens.num_embeddings
    highest = max(
        [*tokenizer.special_tokens.values(), *(i for i, text in enumerate(tokenizer.token_bytes) if text)]
    )
    wrong = int(highest >= rows) + int(rows - highest > PADDING) + int(p.config.vocab_size != rows)
    wrong += int(p.model.lm_head.weight.shape[0] != rows)
    return at_most(
        f"a tokenizer of {size:,} ids, the highest in use {highest:,}; {rows:,} embeddings",
        wrong,
        0,
        "disagreements of the tokenizer's ids with the rows of the embedding and of the head",
        "put the tokenizer there that the model was trained with",
    )


def special_tokens(p: Patient) -> Finding:
    """bos, eos and pad, in config.json and generation_config.json, are the tokenizer's."""
    tokenizer, directory = tokenizer_of(p), export_of(p)
    meant, wrong = special_ids(tokenizer), []
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    files = [CONFIG, GENERATION]
    if p.foreign:
        files = [file for file in files if (directory / file).exists()]
    for file in files:
        values = read_json(directory / file) if (directory / file).exists() else {}
        values = values.get("text_config", values)
        for key, value in meant.items():
            found = values.get(key)
            if not (acceptable(found, tokenizer, key, names) if p.foreign else same_ids(found, value)):
                wrong.append(f"{file}: {key} is {found}, the tokenizer's is {value}")
    return at_most(
        f"bos, eos and pad in {' and '.join(files)}, against the tokenizer",
        len(wrong),
        0,
        f"ids that are not the tokenizer's{': ' + some(wrong, 2) if wrong else ''}",
        "generation would not stop, or begin wrongly: export again with the tokenizer of the model",
    )


def same_ids(found: Any, meant: Any) -> bool:
    return sorted(found if isinstance(found, list) else [found], key=str) == sorted(
        meant if isinstance(meant, list) else [meant], key=str
    )


def acceptable(found: Any, tokenizer: Tokenizer, key: str, names: dict[int, str]) -> bool:
    """Somebody else's choice: special tokens of this tokenizer, and an end that it knows as one; or left open."""
    if found is None:
        return key != "eos_token_id"
    ids = found if isinstance(found, list) else [found]
    ends = key != "eos_token_id" or bool(set(ids) & set(tokenizer.stop_ids))
    return all(i in names for i in ids) and ends


def document_ends(p: Patient) -> Finding:
    """In the batches: a document begins with bos, ends with eos, and nothing is predicted across the border."""
    if p.source is None:
        raise NotChecked("the training text is not at hand")
    tokenizer, read = tokenizer_of(p), p.source()
    batches = [read.batch(0)]
    while len(batches) < MOST_BATCHES and not any(int(batch.documents.max()) for batch in batches):
        batches.append(read.batch(len(batches)))
    batch = stacked(batches)
    tokens, documents = batch.tokens_BT, batch.documents
    border = documents[:, 1:] != documents[:, :-1]
    begins = tokens[:, 1:] == tokenizer.bos_id
    wrong = {
        "borders without bos, or bos without a border": int((border != begins).sum()),
        "borders without eos before": int((tokens[:, :-1][border] != tokenizer.eos_id).sum()),
        "predictions across a border": int((batch.weights_BT[:, :-1][border] != 0).sum()),
        "targets that are not the next token": int((batch.targets_BT[:, :-1] != tokens[:, 1:]).sum()),
        "ids without an embedding": int((tokens >= p.config.vocab_size).sum()),
    }
    named = [f"{count} {what}" for what, count in wrong.items() if count]
    return at_most(
        f"{tokens.numel():,} tokens of the run's own batches, {int(border.sum())} borders",
        sum(wrong.values()),
        0,
        "slots that are wrong" + (f": {some(named)}" if named else ""),
        "prepare the data again with the model's tokenizer; look at data/packing.py",
    )


def chat_template(p: Patient) -> Finding:
    """The exported template, in transformers, gives the ids that training uses."""
    tokenizer, directory = tokenizer_of(p), export_of(p)
    if p.foreign:
        raise NotChecked("the directory was made by somebody else, whose template is theirs")
    if not tokenizer.can_chat:
        raise NotChecked("this tokenizer lacks the template's special tokens")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    meant = encode_chat(tokenizer, CHAT, generation_prompt=True).ids
    try:
        found = AutoTokenizer.from_pretrained(directory).apply_chat_template(
            [{"role": m.role, "content": m.content} for m in CHAT],
            add_generation_prompt=True,
            return_dict=False,
            tokenizer_kwargs={"split_special_tokens": False},
        )
    except Exception as error:  # a template may fail in any way
        found = [type(error).__name__]
    different = sum(a != b for a, b in zip(found, meant, strict=False)) + abs(len(found) - len(meant))
    return at_most(
        f"a conversation of {len(CHAT)} messages, {len(meant)} ids",
        different,
        0,
        "ids that differ from those of text/chat.py",
        "put the template back that this package writes: chat_template.jinja, by an export",
    )


CHECKS: dict[str, Check] = {
    "experts survive save and load": saved_and_loaded,
    "experts survive export and import": exported,
    "transformers gives the same answers": same_in_transformers,
    "tokenizer and embedding have one size": vocabulary,
    "special tokens agree": special_tokens,
    "documents begin and end as the tokenizer says": document_ends,
    "the chat template is the one that is trained on": chat_template,
}
