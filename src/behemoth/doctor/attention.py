"""Who sees whom: chunks, whole rows, packed documents, the future, and the cache that has to agree with all of them.

The threads behind these checks: chunked attention and its mask (huggingface/transformers#37351, #37322, #37352),
documents that leak into each other under packing (huggingface/trl#3728, #6671), a generator that is not the model
that was trained (NVIDIA/Megatron-LM#4256).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from behemoth.doctor import definition
from behemoth.doctor.patient import (
    CLOSE,
    Check,
    Finding,
    NotChecked,
    Patient,
    at_most,
    decided,
    relative,
    rows_of,
    sparse_layers,
    watching,
)
from behemoth.inference.engine import Engine, read

STEPS = 6  # tokens read through the cache, one at a time
CLEAR = 1e-3  # by which the likeliest token has to lead, for a greedy answer to be compared


def chunk_borders(p: Patient) -> Finding:
    """RoPE layers, on rows that cross two borders."""
    meaning = (
        f"attention written out with the mask j <= i and i // {p.probe.config.chunk_size} == j // the same"
    )
    return against_definition(p, True, meaning)


def whole_rows(p: Patient) -> Finding:
    """Layers without positions: the whole row, no rotation, sharper queries further on."""
    meaning = "attention over the whole row, without rotation and with the position's temperature"
    return against_definition(p, False, meaning)


@torch.no_grad()
def against_definition(p: Patient, positions: bool, meaning: str) -> Finding:
    """The attention of the layers of one kind, with and without packed documents."""
    config = p.probe.config
    numbers = [n for n in range(config.num_layers) if definition.has_positions(config, n) == positions]
    if not numbers:
        raise NotChecked(f"no layer is {'with' if positions else 'without'} positions")
    layers: list[Any] = [p.probe.layers[n].self_attn for n in numbers]
    rows, documents_BT = p.probe_rows, packed(p.probe_rows)
    worst: tuple[float, str] = (0.0, "")
    for documents in (None, documents_BT):
        with watching(layers) as calls:
            p.probe(rows, documents)
        for n, layer, ((args, found_BTD),) in zip(numbers, layers, calls, strict=True):
            for row, x_TD in enumerate(args[0]):
                own = None if documents is None else documents[row]
                meant_TD = definition.attention(layer, config, n, x_TD, own)
                where = f"; largest in layer {n} at position {furthest(found_BTD[row], meant_TD)}"
                worst = max(worst, (relative(found_BTD[row], meant_TD), where))
    return at_most(
        f"{rows_of(p)}, plain and packed, {len(numbers)} layers, chunks of {config.chunk_size}",
        worst[0],
        CLOSE,
        f"largest relative difference from {meaning}{worst[1] if worst[0] > CLOSE else ''}",
        "the mask, the rotation or the layer pattern differs from Llama 4's: look at model/transformer.py",
    )


def furthest(found_TD: Tensor, meant_TD: Tensor) -> int:
    return int((found_TD.double() - meant_TD).abs().amax(-1).argmax())


def packed(rows_BT: Tensor) -> Tensor:
    """Three documents a row, with borders that are not the chunks'."""
    T = rows_BT.shape[1]
    place_T = torch.arange(T, device=rows_BT.device)
    return ((place_T >= T // 3 + 1).int() + (place_T >= 3 * T // 4).int()).expand(rows_BT.shape)


@torch.no_grad()
def documents_apart(p: Patient) -> Finding:
    """Other tokens in the first document; nothing changes in the two after it."""
    rows, documents_BT = p.probe_rows, packed(p.probe_rows)
    changed = torch.where(documents_BT == 0, other_tokens(rows, p.config.vocab_size), rows)
    after = int((documents_BT[0] == 0).sum())
    number = change(p, rows, changed, documents_BT, slice(after, None))
    return at_most(
        f"{rows_of(p)}, three documents each; every token of the first is another one",
        number,
        CLOSE,
        "largest relative change in the other documents' hidden states",
        "the document mask is missing or wrong in some layer: look at document_mask in model/transformer.py",
    )


@torch.no_grad()
def future(p: Patient) -> Finding:
    rows, T = p.probe_rows, p.probe_rows.shape[1]
    number = 0.0
    for begin in {T // 2, T - 1}:
        changed = rows.clone()
        changed[:, begin:] = other_tokens(rows, p.config.vocab_size)[:, begin:]
        number = max(number, change(p, rows, changed, None, slice(0, begin)))
    return at_most(
        f"{rows_of(p)}; every token from a place on is another one",
        number,
        CLOSE,
        "largest relative change in hidden states before that place",
        "the mask lets a token see later ones, so that the loss means nothing: look at model/transformer.py",
    )


def other_tokens(rows: Tensor, vocab_size: int) -> Tensor:
    return (rows + 1 + vocab_size // 3) % vocab_size


def change(p: Patient, rows: Tensor, changed: Tensor, documents: Tensor | None, where: slice) -> float:
    """The largest relative change of hidden states in `where`, over tokens whose routing is clear in both."""
    T = rows.shape[1]
    clear_B = decided(p.probe, rows, documents) if documents is None else torch.full_like(rows[:, 0], T)
    a, b = p.probe(rows, documents).hidden_BTD, p.probe(changed, documents).hidden_BTD
    places = torch.arange(T, device=rows.device)[where]
    return max(
        relative(b[row, places[places < clear_B[row]]], a[row, places[places < clear_B[row]]])
        for row in range(len(rows))
    )


@torch.no_grad()
def cached(p: Patient) -> list[Finding]:
    """The engine's way (prompts of several lengths at once, then token by token) against one forward."""
    model, rows = p.probe, p.probe_rows
    T = rows.shape[1]
    chunk = min(model.config.chunk_size, T // 2)  # prompts of three lengths where no chunk is in reach, too
    clear_B = decided(model, rows)
    lengths = [max(1, min(length, T - STEPS)) for length in (chunk - 2, chunk // 2 + 1, 2 * chunk - 1)][
        : len(rows)
    ]
    steps = min(STEPS, T - max(lengths))
    if steps < 1:
        raise NotChecked(f"a context of {p.config.context_length} leaves no room to go on")
    with watching(sparse_layers(model)) as calls:
        whole_BTD = model(rows).hidden_BTD
    routers = [place[0][1][1].logits_NE.view(*rows.shape, -1) for place in calls]
    last_BD, cache = read(model, [rows[row, :length].tolist() for row, length in enumerate(lengths)])
    logits = routing = 0.0
    place = torch.tensor(lengths, device=rows.device)
    every = torch.arange(len(lengths), device=rows.device)
    for step in range(steps + 1):
        at = place + step - 1
        clear = at < clear_B[: len(lengths)]
        meant = model.logits(whole_BTD[every, at])
        logits = max(logits, relative(model.logits(last_BD)[clear], meant[clear]))
        if step == steps:
            break
        with watching(sparse_layers(model)) as calls:
            last_BD = model(rows[every, at + 1].unsqueeze(1), cache=cache).hidden_BTD[:, 0]
        clear = at + 1 < clear_B[: len(lengths)]
        for call, router_BTE in zip(calls, routers, strict=True):
            found = call[0][1][1].logits_NE
            routing = max(routing, relative(found[clear], router_BTE[every, at + 1][clear]))
    looked_at = f"{len(lengths)} prompts of {', '.join(map(str, lengths))} tokens, then {steps} one at a time"
    todo = "the engine is not the model that was trained: look at inference/cache.py, near a chunk's border"
    meaning = "largest relative difference from one forward over the whole row"
    findings = [at_most(looked_at, logits, CLOSE, meaning, todo, "logits, cached engine")]
    if routers:
        findings.append(at_most(looked_at, routing, CLOSE, meaning, todo, "router logits, cached engine"))
    return findings


@torch.no_grad()
def greedy(p: Patient) -> Finding:
    """What the engine answers is what the model finds likeliest."""
    model, rows = p.probe, p.probe_rows
    prompts = [rows[row, : rows.shape[1] // (row + 2)].tolist() for row in range(len(rows))]
    answers = Engine(model).generate(prompts, max_tokens=STEPS)
    wrong, looked = 0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = torch.tensor([[*prompt, *answer.tokens]], device=rows.device)
        logits_TV = model.logits(model(whole).hidden_BTD[0, len(prompt) - 1 : -1]).float()
        for logits_V, token in zip(logits_TV, answer.tokens, strict=True):
            best = logits_V.max()
            looked += 1
            wrong += bool(best - logits_V[token] > CLEAR * best.abs().clamp_min(1))
    return at_most(
        f"{looked} tokens after {len(prompts)} prompts",
        wrong,
        0,
        "tokens for which one forward over prompt and answer prefers another",
        "look at inference/engine.py and inference/sampling.py",
    )


CHECKS: dict[str, Check] = {
    "chunks begin and end where they should": chunk_borders,
    "every n-th layer sees the row without positions": whole_rows,
    "packed documents do not see each other": documents_apart,
    "no token sees the future": future,
    "the cached engine is the model": cached,
    "greedy answers are the likeliest": greedy,
}
