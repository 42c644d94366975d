"""Our half of a receipt: the questions, and what our model and tokenizer answer.

The rows of tokens are chosen to be where implementations differ: one crosses a chunk border and the
temperature's floor as far as the context allows, one takes ids from the whole vocabulary. Answers are
computed in fp32 with a full forward (no cache) from the weights as they are written, and kept at a few
positions only, so that a big vocabulary costs little. `receipt` asks transformers the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from behemoth.base.files import write_json
from behemoth.export.receipt import digest
from behemoth.model import llama3
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import config_to_hf, hf_name, to_hf
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

PASSAGE = (
    "def mean(values):\n    return sum(values) / len(values)\n\nA chunk ends where the next begins; "
    "2026 was 45 years after 1981. Größe, naïve, 数学, 🙂.\t"
)
SPECIAL_LOOKING = "<|begin_of_text|>plain<|eot|> text that looks <|end_of_text|> special"
TEXTS = [PASSAGE, "", " ", "\n\n  x", "\r\n\x00é", SPECIAL_LOOKING]
CHAT = [Message("system", "Be brief."), Message("user", " What is 2 + 2? "), Message("assistant", "4")]
BEYOND = 8  # how far a row goes past the last border it crosses
NEW_TOKENS = 16
TIE = 3e-5  # router logits closer than this are ordered by rounding
TRIES = 8  # rows looked at before a tie is put up with
LIMIT = 1e-5  # largest difference of fp32 logits, relative to the largest logit where that is above 1


def special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """The special ids that config.json and generation_config.json name."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad_id,
    }


def ask(
    model: Transformer, tokenizer: Tokenizer, evidence: Path, directory: Path, tokens: Path, *, imported: bool
) -> None:
    """Write questions.json and answers.safetensors into `evidence`.

    model: holds the weights of `directory`, in the precision they have there. tokens: where its tokenizer is.
    An imported directory is somebody else's: its chat template and its treatment of special-looking text are
    not held to ours.
    """
    config = model.config
    precision, model.compute_dtype = model.compute_dtype, torch.float32
    rows, notes = _rows(model, tokenizer)
    answers: dict[str, Tensor] = {}
    for name, row in rows.items():
        answers |= {f"{name}.{part}": x for part, x in _answer(model, row, watched(config, len(row))).items()}
    prompt = [tokenizer.bos_id, *tokenizer.encode(PASSAGE)[:7]][: max(1, config.context_length - 1)]
    greedy = _continue_greedily(model, prompt, tokenizer.stop_ids)
    model.compute_dtype = precision
    save_file(answers, evidence / "answers.safetensors")

    texts = [text for text in TEXTS if not (imported and text == SPECIAL_LOOKING)]
    chat = (
        encode_chat(tokenizer, CHAT, generation_prompt=True).ids
        if tokenizer.can_chat and not imported
        else None
    )
    questions = {
        "directory": str(directory),
        "tokenizer": str(tokens),
        "rows": rows,
        "notes": notes,
        "watched": {name: watched(config, len(row)) for name, row in rows.items()},
        "chunk": config.chunk_size,
        "limit": LIMIT,
        "greedy": {"prompt": prompt, "answer": greedy},
        "config": config_to_hf(config, None if imported else special_ids(tokenizer)),
        "tensors": {
            hf_name(name, config): digest(to_hf(name, p, config)) for name, p in model.named_parameters()
        },
        "texts": [{"text": text, "ids": tokenizer.encode(text)} for text in texts],
        "chat": chat and {"messages": [{"role": m.role, "content": m.content} for m in CHAT], "ids": chat},
        "special": None if imported else special_ids(tokenizer) | {"eos_id": tokenizer.eos_id},
    }
    write_json(evidence / "questions.json", questions)


def _rows(model: Transformer, tokenizer: Tokenizer) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Rows of ids, and for each a sentence on what it crosses and what it cannot."""
    config = model.config
    borders = {"chunk border": config.chunk_size, "temperature floor": config.temperature_floor}
    if not config.temperature_tuning or config.nope_every == 0:
        del borders["temperature floor"]
    if llama3.fits(config):
        del borders["chunk border"]
    reached = {name: at for name, at in borders.items() if at < config.context_length}
    length = min(config.context_length, max(reached.values(), default=64) + BEYOND)
    crossed = [f"crosses the {name} at {at}" for name, at in reached.items()]
    missed = [
        f"the context of {config.context_length} ends before the {name} at {at}"
        for name, at in borders.items()
        if name not in reached
    ]
    passage = tokenizer.encode(PASSAGE)
    text = [
        [tokenizer.bos_id, *(passage[turn:] + passage * (length // len(passage) + 1))][:length]
        for turn in range(TRIES)
    ]
    spread = [
        [(i * 7919 + turn) % config.vocab_size for i in range(min(48, config.context_length))]
        for turn in range(TRIES)
    ]
    rows = {"text": _without_ties(model, text), "any id": _without_ties(model, spread)}
    return rows, {"text": "; ".join(crossed + missed), "any id": ""}


def _without_ties(model: Transformer, candidates: list[list[int]]) -> list[int]:
    """The first row in which no router is undecided; the last one if all have a tie."""
    return next((row for row in candidates if _narrowest(model, row) > TIE), candidates[-1])


@torch.no_grad()
def _narrowest(model: Transformer, row: list[int]) -> float:
    """The smallest gap between the last expert chosen and the first one not chosen, over all tokens and layers.

    Rounding may order two experts that are closer than it either way: both are right, and the answers differ.
    """
    k = model.config.experts_per_token
    gaps = [float("inf")]

    def measure(_: nn.Module, __: tuple[Tensor], logits_NE: Tensor) -> None:
        if logits_NE.shape[-1] > k:
            top = logits_NE.topk(k + 1, dim=-1).values
            gaps.append(float((top[:, -2] - top[:, -1]).min()))

    routers = [module for name, module in model.named_modules() if name.endswith(".router")]
    hooks = [router.register_forward_hook(measure) for router in routers]
    model(torch.tensor([row], device=model.embed_tokens.weight.device))
    for hook in hooks:
        hook.remove()
    return min(gaps)


def watched(config: ModelConfig, length: int) -> list[int]:
    """The positions at which answers are kept: both ends, both sides of every border, and some between."""
    near = {b + d for b in (config.chunk_size, config.temperature_floor) for d in range(-2, 3)}
    spots = (
        near | set(range(4)) | set(range(length - 4, length)) | set(range(0, length, max(1, length // 16)))
    )
    return sorted(spot for spot in spots if 0 <= spot < length)


@torch.no_grad()
def _answer(model: Transformer, row: list[int], spots: list[int]) -> dict[str, Tensor]:
    """Logits and the output of every layer at `spots`."""
    layers: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, y: layers.append(y[0][0, spots])) for block in model.layers
    ]
    try:
        hidden_BTD = model(torch.tensor([row], device=model.embed_tokens.weight.device)).hidden_BTD
    finally:
        for hook in hooks:
            hook.remove()
    logits = model.logits(hidden_BTD[0, spots])
    return {"logits": logits.float().cpu().contiguous(), "layers": torch.stack(layers).float().cpu()}


@torch.no_grad()
def _continue_greedily(model: Transformer, prompt: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The likeliest next token, again and again, each from a full forward. Stops after a stop token."""
    row = list(prompt)
    while len(row) < min(len(prompt) + NEW_TOKENS, model.config.context_length):
        hidden_BTD = model(torch.tensor([row], device=model.embed_tokens.weight.device)).hidden_BTD
        row.append(int(model.logits(hidden_BTD[0, -1]).argmax()))
        if row[-1] in stops:
            break
    return row[len(prompt) :]
