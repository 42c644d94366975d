"""Routers and experts at work: what they compute, who gets the tokens, and what must not change either.

The threads behind these checks: routers with a second softmax (huggingface/transformers#45120), a trainer and a
generator that route differently (NVIDIA/Megatron-LM#4256), scores on what an expert writes rather than reads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from behemoth.base.units import some
from behemoth.doctor import definition
from behemoth.doctor.patient import (
    CLOSE,
    TIE,
    Check,
    Finding,
    NotChecked,
    Patient,
    as_warning,
    at_least,
    at_most,
    in_fp32,
    relative,
    routings,
    rows_of,
    watching,
)
from behemoth.doctor.weights import need_experts
from behemoth.inference.engine import Engine
from behemoth.model.experts import Routing
from behemoth.model.transformer import Transformer

ENOUGH = 184  # choices per expert: one with 5% of an even share would be met with probability 0.9999
COLLAPSED, UNEVEN = 0.1, 0.3  # of the way from k experts in use to all of them
FLIPS = 0.2  # share of choices that rounding may decide: fresh routers are often near a tie
AT_ONCE = 2**24  # logits held at once
NATS = 0.05  # by which rounding may change the loss, per token


@torch.no_grad()
def feed_forward(p: Patient) -> list[Finding]:
    """Each layer's feed-forward against the definition, given the same input."""
    layers: list[Any] = [block.feed_forward for block in p.probe.layers]
    rows = p.probe_rows
    with watching(layers) as calls:
        p.probe(rows)
    worst = {True: (0.0, ""), False: (0.0, "")}
    for number, (layer, ((args, out),)) in enumerate(zip(layers, calls, strict=True)):
        sparse = p.config.is_sparse(number)
        x_ND = args[0].flatten(0, 1)
        if sparse:
            routed = definition.sparse(layer, p.config, x_ND)
            clear = routed.gap_N > TIE
            found, meant = out[0].flatten(0, 1)[clear], routed.output_ND[clear]
            difference = max(relative(found, meant), score_difference(out[1], routed, clear))
        else:
            difference = relative(out.flatten(0, 1), definition.dense(layer, x_ND))
        worst[sparse] = max(worst[sparse], (difference, f"; largest in layer {number}"))
    todo = (
        "look at what changed in model/experts.py and model/transformer.py, or at how gate and up were loaded"
    )
    findings = []
    for sparse, check, what in (
        (
            True,
            "sparse layers are Llama 4's",
            f"expert(sigmoid(logit) * x) on its {p.config.score_on}, the top k",
        ),
        (False, "dense layers are Llama 4's", "down(silu(gate x) * up x)"),
    ):
        largest, where = worst[sparse]
        if any(p.config.is_sparse(layer) == sparse for layer in range(p.config.num_layers)):
            meaning = f"largest relative difference from {what}, written out in fp64{where}"
            findings.append(at_most(rows_of(p), largest, CLOSE, meaning, todo, check))
    return findings


def score_difference(routing: Routing, routed: definition.Routed, clear: Tensor) -> float:
    """Of the scores, laid out over all experts: also finds a choice of the wrong expert."""
    scores_NE = torch.zeros_like(routed.scores_NE)
    scores_NE.scatter_(1, routing.experts_Nk, routing.scores_Nk.double())
    return relative(scores_NE[clear], routed.scores_NE[clear])


def every_expert_reads(p: Patient) -> Finding:
    """Dead experts: none of the text and none of the whole vocabulary reaches them."""
    need_experts(p)
    dead: list[str] = []
    idle: list[str] = []
    for layer, text, random in zip(p.config.sparse_layers, p.seen.text, p.seen.random, strict=True):
        for e in range(p.config.num_experts):
            if not text.load_E[e]:
                (idle if random.load_E[e] else dead).append(f"layer {layer} expert {e}")
    tokens = p.text_BT.numel()
    looked_at = f"{tokens:,} tokens of {p.text_is}, and as many random ids, through {len(p.seen.text)} layers"
    todo = "look at its load during training; raise train.balance, or draw the expert and its router row anew"
    found = at_most(
        looked_at,
        len(dead),
        0,
        f"experts that nothing reaches{': ' + some(dead) if dead else ''}"
        + (f"; rarely used, only by random ids: {some(idle)}" if idle else ""),
        todo,
    )
    few = tokens * p.config.experts_per_token < ENOUGH * p.config.num_experts
    return as_warning(found) if few or not p.trained else found  # a fresh router can still change its mind


def collapse(p: Patient) -> Finding:
    """How many experts a layer really uses: the exponential of the entropy of its load."""
    need_experts(p)
    E, k = p.config.num_experts, p.config.experts_per_token
    if k == E:
        raise NotChecked("every token goes to every expert")
    spread, layer, largest = min(
        (
            (in_use(routing.load_E) - k) / (E - k),
            layer,
            float(routing.load_E.max() / routing.load_E.sum() * k),
        )
        for layer, routing in zip(p.config.sparse_layers, p.seen.text, strict=True)
    )
    found = at_least(
        f"{p.text_BT.numel():,} tokens of {p.text_is}",
        spread,
        COLLAPSED,
        f"experts in use (exp of the load's entropy), 0 = only {k}, 1 = all {E} evenly; lowest in layer {layer}, "
        f"where one expert reads {largest:.0%} of the tokens",
        "raise train.balance and train again from a checkpoint before the collapse",
    )
    if found.verdict == "ok" and p.trained and spread < UNEVEN:
        return as_warning(at_least(found.looked_at, spread, UNEVEN, found.meaning, "watch the load"))
    return found


def in_use(load_E: Tensor) -> float:
    share = (load_E / load_E.sum()).clamp_min(1e-12)
    return math.exp(float(-(share * share.log()).sum()))


@torch.no_grad()
def unbalanced_outside_training(p: Patient) -> Finding:
    """The load that the balancing term remembers changes nothing when a model is only used."""
    need_experts(p)
    rows = p.probe_rows
    model = in_fp32(p.probe).eval()
    model.load_LE = torch.full_like(model.load_LE, 1 / p.config.num_experts)
    even, scores = model(rows).hidden_BTD, Engine(model).logprobs(rows.tolist())
    model.load_LE = ramp(model.load_LE)
    changed = relative(model(rows).hidden_BTD, even)
    for a, b in zip(Engine(model).logprobs(rows.tolist()), scores, strict=True):
        changed = max(changed, float(abs(a - b).max()))
    return at_most(
        f"{rows_of(p)}, with the remembered load even and then uneven",
        changed,
        1e-6,
        "largest change of hidden states and log-probabilities",
        "something outside the objective reads load_LE: only the balancing term may",
    )


def ramp(load_LE: Tensor) -> Tensor:
    """A load as uneven as can be told apart: the first expert has most, the last nothing."""
    L, E = load_LE.shape
    falling_E = torch.linspace(2, 0, E, device=load_LE.device) + (1 if E == 1 else 0)
    return (falling_E / falling_E.sum()).expand(L, E).clone()


@torch.no_grad()
def rounding(p: Patient) -> list[Finding]:
    """What the precision of training decides: choices of experts, and nats."""
    dtype = p.precision or p.model.compute_dtype
    if dtype == torch.float32:
        raise NotChecked("activations are fp32")
    fine, coarse = in_fp32(p.model), in_fp32(p.model)
    coarse.compute_dtype = dtype
    rows = p.text_BT[: max(1, min(2048, AT_ONCE // p.config.vocab_size) // p.text_BT.shape[1])]
    looked_at = f"{rows.numel():,} tokens of {p.text_is}, in {str(dtype).removeprefix('torch.')} and in fp32"
    nats = abs(mean_nats(coarse, rows) - mean_nats(fine, rows))
    findings = [
        at_most(
            looked_at,
            nats,
            NATS,
            "difference of the loss, nats per token",
            "some activations are too large for this precision: train in fp32, or look at the layers' norms",
            "rounding leaves the loss alone",
        )
    ]
    if p.config.sparse_layers:
        share = max(
            1 - float((chosen(a) & chosen(b)).sum() / chosen(b).sum())
            for a, b in zip(routings(coarse, rows), routings(fine, rows), strict=True)
        )
        todo = "the router is undecided at this precision; compare training and generation with care"
        meaning = "share of choices of an expert that change, in the layer where it is largest"
        findings.append(at_most(looked_at, share, FLIPS, meaning, todo, "rounding leaves the routing alone"))
    return findings


def chosen(routing: Routing) -> Tensor:
    return torch.zeros_like(routing.logits_NE, dtype=torch.bool).scatter_(1, routing.experts_Nk, True)


def mean_nats(model: Transformer, rows: Tensor) -> float:
    logp = model.logits(model(rows).hidden_BTD[:, :-1]).float().log_softmax(-1)
    return -float(logp.gather(-1, rows[:, 1:, None]).mean())


CHECKS: dict[str, Check] = {
    "feed-forward layers are Llama 4's": feed_forward,
    "every expert receives tokens": every_expert_reads,
    "no router has collapsed": collapse,
    "balancing does not reach evaluation": unbalanced_outside_training,
    "rounding changes little": rounding,
}
