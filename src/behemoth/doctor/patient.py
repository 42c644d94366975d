"""Who is examined, and what is said of it.

A patient is whatever there is of a model: its weights, and where they are known the weights it began with, its
text, objective, optimizer, tokenizer and exported directory. A check reads what it needs of these and returns a
`Finding`; where something is missing it says "not checked", and why. Copies that several checks work on are made
once, here.

Numerics are examined in fp32 on copies, whatever precision the model has: rounding would hide in bf16 what the
checks look for. `probe` is such a copy whose chunks and temperature floor are short enough for a short row to cross
them; neither changes a weight, so what holds at a border of 16 holds at one of 8192.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from behemoth.data.batch import Batch
from behemoth.model import llama3
from behemoth.model.config import ModelConfig
from behemoth.model.experts import Routing
from behemoth.model.transformer import MoE, Transformer
from behemoth.objectives.loss import Loss
from behemoth.objectives.next_token import next_token
from behemoth.train.optim import Optimizer, Settings

Verdict = Literal["ok", "warning", "fault", "not checked"]

CLOSE = (
    1e-4  # fp32 answers that mean the same differ by 1e-6 of the largest; those that do not, by 1e-3 and more
)
TIE = 3e-5  # router logits closer than this are ordered by rounding
PROBE_CHUNK = 16  # where the model's own chunk is too long for a short row
LONGEST_PROBE = 160
ROWS = 4  # of a batch in the checks that train


@dataclass(frozen=True)
class Finding:
    """What one check looked at, the number, and what follows from it."""

    check: str
    looked_at: str
    number: float | None
    limit: str  # "at most 0.0001"; "" where nothing was judged
    verdict: Verdict
    meaning: str
    todo: str = ""
    model: str = ""  # which of several models


class NotChecked(Exception):
    """A check cannot be made; the message says why."""


class Source(Protocol):
    """Batches by number."""

    def batch(self, step: int) -> Batch: ...


def muon(model: Transformer) -> Optimizer:
    """The optimizer of a recipe that names none."""
    return Optimizer(model, Settings("muon", 0.01, 0.01, 0.1))


@dataclass(frozen=True, eq=False)
class Patient:
    """What there is of one model. Only the model, some text and a workspace are always there."""

    name: str
    model: Transformer
    text_BT: Tensor  # rows of ids
    text_is: str  # in words: "held-out text"
    workspace: Path  # an empty folder, for files that are written and read back
    trained: bool = True  # whether any step was made
    initial: Transformer | None = None  # the weights it began with
    control: Transformer | None = None  # of a student: the same model without the teacher
    proxy: Transformer | None = None  # small, of the same structure: trained where the model is too large
    precision: torch.dtype | None = None  # of the activations in training
    objective: Callable[..., Loss] = next_token  # (model, batch, balance=...)
    balance: float = 0.01
    optimizer: Callable[[Transformer], Any] = muon
    source: Callable[[], Source] | None = None  # opens the training text anew
    tokenizer: Path | None = None
    exported: Path | None = None  # a Hugging Face directory of these weights; one is written when None
    adapter: Path | None = None  # in PEFT's format, trained on what these weights were before
    foreign: bool = False  # `exported` was made by somebody else: its template is not held to ours
    made: dict[str, Any] = field(default_factory=dict)  # by checks, for other checks

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @cached_property
    def probe(self) -> Transformer:
        """The model in fp32, with borders that a row of `probe_rows` crosses."""
        return with_config(in_fp32(self.model), near_borders(self.config)).requires_grad_(False)

    @cached_property
    def probe_rows(self) -> Tensor:
        """A few rows that cross two chunk borders where the context allows, those with few undecided routers."""
        config = self.probe.config
        length = min(config.context_length, 2 * config.chunk_size + 5, LONGEST_PROBE)
        stream = self.text_BT.flatten()
        stream = stream.repeat(-(-12 * length // len(stream)))
        rows = stream[: 12 * length].view(12, length)
        best = decided(self.probe, rows).argsort(descending=True, stable=True)
        return rows[best[:3]]

    @cached_property
    def seen(self) -> Seen:
        """What every sparse layer did with the text, and with ids drawn from the whole vocabulary."""
        generator = torch.Generator().manual_seed(0)
        size, device = self.config.vocab_size, self.text_BT.device
        random_BT = torch.randint(size, tuple(self.text_BT.shape), generator=generator).to(device)
        model = with_config(self.probe, self.config)
        return Seen(routings(model, self.text_BT), routings(model, random_BT))

    @cached_property
    def learner(self) -> Transformer:
        """What trains, in fp32; every check takes its own copy."""
        return in_fp32(self.proxy or self.model).requires_grad_(True)

    def batches(self) -> Source:
        """Training text from its beginning: the run's, or rows made of this text."""
        return Few(self.source() if self.source else Synthetic(self.text_BT), self.learner.norm.weight.device)

    @property
    def read_in_training(self) -> str:
        return "the run's own batches" if self.source else self.text_is


@dataclass(frozen=True)
class Seen:
    """Routings of each sparse layer."""

    text: list[Routing]
    random: list[Routing]


@dataclass(frozen=True)
class Few:
    """At most `ROWS` rows of another source's batches, and never one alone."""

    source: Source
    device: torch.device

    def batch(self, step: int) -> Batch:
        whole = self.source.batch(step).to(self.device)
        if len(whole.tokens_BT) == 1:
            whole = stacked([whole, whole])
        return cut(whole, min(ROWS, len(whole.tokens_BT)))


@dataclass(frozen=True)
class Synthetic:
    """Packed rows out of any text: each has a border between documents, at another place."""

    text_BT: Tensor

    def batch(self, step: int) -> Batch:
        stream, length = self.text_BT.flatten(), min(self.text_BT.shape[1], 128) + 1
        starts = (torch.arange(ROWS) + step * ROWS) * (length - 1) % max(1, len(stream) - length)
        slots_BT = torch.stack([stream[s : s + length] for s in starts.tolist()])
        borders_B1 = (torch.arange(1, ROWS + 1) * (length - 1) // (ROWS + 1)).unsqueeze(1)
        documents_BT = (torch.arange(length) > borders_B1).int().to(slots_BT.device)
        weights_BT = (documents_BT[:, 1:] == documents_BT[:, :-1]).float()
        return Batch(
            slots_BT[:, :-1], slots_BT[:, 1:], weights_BT, documents_BT[:, :-1], float(weights_BT.sum())
        )


def cut(batch: Batch, rows: int) -> Batch:
    return batch.rows(slice(rows))


def stacked(batches: Sequence[Batch]) -> Batch:
    names = ("tokens_BT", "targets_BT", "weights_BT", "documents")
    tokens, targets, weights, documents = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in names
    )
    return Batch(tokens, targets, weights, documents, float(weights.sum()))


Check = Callable[[Patient], Finding | list[Finding]]


# ------------------------------------------------------------------------------------------------------ copies


def in_fp32(model: Transformer) -> Transformer:
    """A copy whose weights and activations are fp32."""
    made = copy.deepcopy(model).float()
    made.frequencies, made.compute_dtype = model.frequencies.clone(), torch.float32
    return made


def with_config(model: Transformer, config: ModelConfig) -> Transformer:
    """The same weights under settings that change no shape."""
    made = copy.copy(model)
    made._modules = dict(model._modules)
    made.config = config
    blocks: list[Any] = [copy.copy(block) for block in model.layers]
    for block in blocks:
        block._modules = dict(block._modules)
        block.self_attn = copy.copy(block.self_attn)
        block.self_attn.config = config
    made.layers = nn.ModuleList(blocks)
    return made


def near_borders(config: ModelConfig) -> ModelConfig:
    """Chunks and temperature floor within the reach of a short row; Llama 3 has neither."""
    if llama3.fits(config):
        return config
    reach = min(config.context_length, LONGEST_PROBE)
    chunk = config.chunk_size if 2 * config.chunk_size + 5 <= reach else min(PROBE_CHUNK, max(1, reach // 3))
    floor = min(config.temperature_floor, max(1, chunk // 2))
    return config.model_copy(update={"chunk_size": chunk, "temperature_floor": floor})


# ---------------------------------------------------------------------------------------------------- watching


@contextmanager
def watching(modules: Sequence[nn.Module]) -> Iterator[list[list[tuple[Any, Any]]]]:
    """(arguments, output) of every call of each module."""
    calls: list[list[tuple[Any, Any]]] = [[] for _ in modules]
    hooks = [
        module.register_forward_hook(lambda _, args, out, place=place: place.append((args, out)))
        for module, place in zip(modules, calls, strict=True)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def sparse_layers(model: Transformer) -> list[MoE]:
    return [block.feed_forward for block in model.layers if isinstance(block.feed_forward, MoE)]


@torch.no_grad()
def routings(model: Transformer, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> list[Routing]:
    """What each sparse layer chose, in a forward as training makes it."""
    with watching(sparse_layers(model)) as calls:
        model(tokens_BT, documents_BT)
    return [place[0][1][1] for place in calls]


def gaps(routing: Routing, k: int) -> Tensor:
    """By how much the last expert chosen leads the first one that was not, (N,)."""
    logits_NE = routing.logits_NE.float()
    if logits_NE.shape[1] == k:
        return torch.full_like(logits_NE[:, 0], float("inf"))
    top = logits_NE.topk(k + 1, dim=-1).values
    return top[:, -2] - top[:, -1]


def decided(model: Transformer, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    """How many tokens each row has before the first that a router leaves to rounding; from there on two right
    answers can differ."""
    B, T = tokens_BT.shape
    k = model.config.experts_per_token
    tied_BT = torch.zeros(B, T, dtype=torch.bool, device=tokens_BT.device)
    for routing in routings(model, tokens_BT, documents_BT):
        tied_BT |= (gaps(routing, k) < TIE).view(B, T)
    return torch.where(tied_BT.any(1), tied_BT.int().argmax(1), T)


def relative(found: Tensor, meant: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite where something is not a number."""
    if found.numel() == 0 and meant.numel() == 0:
        return 0.0
    difference = (found.double() - meant.double()).abs().nan_to_num(nan=float("inf")).max()
    return float(difference / meant.double().abs().max().clamp_min(1e-12))


# ---------------------------------------------------------------------------------------------------- verdicts


def at_most(looked_at: str, number: float, limit: float, meaning: str, todo: str, check: str = "") -> Finding:
    """ok up to `limit`; what is not a number is a fault."""
    good = number <= limit
    return Finding(
        check,
        looked_at,
        float(number),
        f"at most {limit:g}",
        "ok" if good else "fault",
        meaning,
        "" if good else todo,
    )


def at_least(
    looked_at: str, number: float, limit: float, meaning: str, todo: str, check: str = ""
) -> Finding:
    good = number >= limit
    return Finding(
        check,
        looked_at,
        float(number),
        f"at least {limit:g}",
        "ok" if good else "fault",
        meaning,
        "" if good else todo,
    )


def as_warning(finding: Finding) -> Finding:
    """The same, told without failing."""
    return replace(finding, verdict="warning") if finding.verdict == "fault" else finding


def rows_of(p: Patient) -> str:
    B, T = p.probe_rows.shape
    return f"{B} rows of {T} tokens of {p.text_is}"
