"""Training, looked at from outside: loss, gradients, balancing, microbatches, optimizer, a few steps, a resume.

Everything works on copies: the patient's weights are as they were afterwards. Gradients are taken with
torch.autograd.grad; the steps are made by the training loop itself.

The threads behind these checks: a balancing term whose value is thrown away (NVIDIA-NeMo/Automodel#1408, "most MoE
runs silently trained without the load-balancing term", huggingface/trl#6085), one that is on where nobody asked
(NVIDIA-NeMo/RL#3169), resumes that begin again at step 0 (huggingface/trl#3179, #2657, Megatron-Bridge#4601).
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from behemoth.base.units import some
from behemoth.data.batch import Batch
from behemoth.doctor.patient import (
    CLOSE,
    Check,
    Finding,
    NotChecked,
    Patient,
    Source,
    at_most,
    relative,
    routings,
    sparse_layers,
    stacked,
    watching,
)
from behemoth.doctor.routing import ramp
from behemoth.doctor.weights import digests, need_experts, parts, sine
from behemoth.export.receipt import digest
from behemoth.model.transformer import Transformer
from behemoth.train import resume
from behemoth.train.checkpoint import Checkpoints
from behemoth.train.loop import Member, Plan, Update, train, update

SAVED_AT, STEPS = 2, 3
TURNED = 1e-6  # sine of the angle that three steps turn a matrix by at least: they turn it by 0.01 and more
OF_AN_EXPERT = ("router.weight", "experts.gate_up_proj", "experts.down_proj")
TERM = 1e-2  # relative difference of the balancing gradient, which is itself a small difference of two large ones


# ----------------------------------------------------------------------------------------- the loss, and its gradient


@torch.no_grad()
def loss_is_defined(p: Patient) -> Finding:
    """The sum of weight * -log p(target), every logit written out."""
    model, batch = p.learner, uneven_batch(p)
    found = p.objective(model, batch, balance=0.0)
    logp = model.logits(model(batch.tokens_BT, batch.documents_BT).hidden_BTD).double().log_softmax(-1)
    meant = -(batch.weights_BT * logp.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1)).sum()
    numbers = [found.metrics["loss"]] + ([] if "kl" in found.metrics else [found.total])
    return at_most(
        looked_at(p, batch),
        max(relative(number, meant) for number in numbers),
        CLOSE,
        f"relative difference from the sum of -log p, {float(meant) / batch.weight:.3f} nats per token",
        "the objective counts tokens it should not, or leaves some out: look at objectives/",
    )


def every_weight_learns(p: Patient) -> Finding:
    """No matrix, norm or embedding is cut off from the loss."""
    model = copy.deepcopy(p.learner)
    found: Counter[str] = Counter()
    for step in range(2):
        for name, gradient in gradients(p, model, p.batches().batch(step), p.balance).items():
            found[name] += 0 if gradient is None else int(gradient.count_nonzero())
    without = [name for name, parameter in model.named_parameters() if not found[name]]
    return at_most(
        f"{len(dict(model.named_parameters()))} tensors, two batches of {p.read_in_training}",
        len(without),
        0,
        f"tensors without gradient{': ' + some(without) if without else ''}",
        "the graph is cut before them: look for detach, no_grad or requires_grad = False",
    )


def every_expert_learns(p: Patient) -> Finding:
    """Each expert that reads tokens, and its row of the router, without help from the balancing term."""
    need_experts(p)
    model, batch = copy.deepcopy(p.learner), p.batches().batch(0)
    found, reading = gradients(p, model, batch, 0.0), readers(model, batch)
    without = [
        f"{name}[{e}]"
        for layer, experts in reading.items()
        for e in experts
        for name in (f"layers.{layer}.feed_forward.{part}" for part in OF_AN_EXPERT)
        if (gradient := found[name]) is None or not gradient[e].count_nonzero()
    ]
    return at_most(
        f"{sum(map(len, reading.values()))} experts that read tokens with a weight in the loss, and their router rows",
        len(without),
        0,
        f"parts without gradient from the text itself{': ' + some(without) if without else ''}",
        "the router's score has to stay in the graph, and the experts' weights with it: look at model/experts.py",
    )


@torch.no_grad()
def readers(model: Transformer, batch: Batch) -> dict[int, list[int]]:
    """By sparse layer, the experts that were given a token which counts: the others have nothing to learn from."""
    counts_N = batch.weights_BT.flatten() > 0
    found = routings(model, batch.tokens_BT, batch.documents_BT)
    chosen = (routing.experts_Nk[counts_N].unique().tolist() for routing in found)
    return dict(zip(model.config.sparse_layers, chosen, strict=True))


def balancing_works(p: Patient) -> Finding:
    """What the term adds to the routers' gradient, against E * sum_e f_e P_e written out."""
    need_experts(p)
    if p.config.num_experts == 1:
        raise NotChecked("one expert has nothing to balance")
    if not p.balance:
        finding = at_most(
            "the recipe",
            1,
            0,
            "train.balance is 0",
            "set train.balance",
        )
        return Finding(**{**vars(finding), "verdict": "warning"})
    model, batch = copy.deepcopy(p.learner), p.batches().batch(0)
    model.load_LE = ramp(model.load_LE)
    with_term, without = (router_gradient(p, model, batch, balance) for balance in (p.balance, 0.0))
    model.zero_grad()
    with watching(sparse_layers(model)) as calls:
        model(batch.tokens_BT, batch.documents_BT)
    counts_N1 = batch.weights_BT.flatten().unsqueeze(1)
    probs_LE = torch.stack(
        [(counts_N1 * place[0][1][1].logits_NE.float().softmax(-1)).sum(0) for place in calls]
    )
    term = p.balance * model.config.num_experts * (model.load_LE * probs_LE).sum(1).mean() / batch.weight
    meant = flat(torch.autograd.grad(term, routers(model)))
    difference = float((with_term - without - meant).norm() / meant.norm().clamp_min(1e-30))
    share = float((with_term - without).norm() / with_term.norm().clamp_min(1e-30))
    return at_most(
        f"the gradient of {len(calls)} routers with balance = {p.balance:g} and with 0, after an uneven load",
        difference,
        TERM,
        f"relative difference of what the term adds from its definition; it adds {share:.2%} of the gradient",
        "the term is dropped, detached or another one: without it experts die; look at objectives/next_token.py",
    )


def microbatches(p: Patient) -> Finding:
    """One forward of all rows, or one for each row: the loop has to arrive at the same gradient."""
    batch = uneven_batch(p)
    rows = len(batch.tokens_BT)
    found = []
    for number in (1, rows):
        model = copy.deepcopy(p.learner)
        notes = Notes(model)
        member = Member("probe", model, partial(p.objective, balance=p.balance), notes, constant, 1)  # type: ignore[arg-type]
        update(member, batch.microbatches(number), batch.weight, 0, float("inf"))
        found.append(flat(notes.gradients))
    difference = float((found[1] - found[0]).norm() / found[0].norm().clamp_min(1e-30))
    return at_most(
        f"{looked_at(p, batch)}, all at once and one by one",
        difference,
        CLOSE,
        "relative difference of the gradient as the loop computes it",
        "a mean is taken where a sum belongs: the loss is a sum, divided once by the weight of the step",
    )


class Notes:
    """Stands where an optimizer would, and writes down the gradient instead of following it."""

    def __init__(self, model: Transformer):
        self.model, self.gradients = model, []  # type: tuple[Transformer, list[Tensor]]

    def step(self, factor: float) -> None:
        self.gradients = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    def zero_grad(self) -> None:
        self.model.zero_grad()


def gradients(p: Patient, model: Transformer, batch: Batch, balance: float) -> dict[str, Tensor | None]:
    named = dict(model.named_parameters())
    loss = p.objective(model, batch, balance=balance).total / batch.weight
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def router_gradient(p: Patient, model: Transformer, batch: Batch, balance: float) -> Tensor:
    loss = p.objective(model, batch, balance=balance).total / batch.weight
    weights = routers(model)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return flat([torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)])


def routers(model: Transformer) -> list[Tensor]:
    return [layer.router.weight for layer in sparse_layers(model)]


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def uneven_batch(p: Patient) -> Batch:
    """Rows of unlike weight: the last one counts a quarter of its tokens."""
    batch = stacked([p.batches().batch(0)])
    rows, T = batch.tokens_BT.shape
    first_B1 = (torch.arange(rows) * 3 * T // (4 * max(1, rows - 1))).unsqueeze(1).to(batch.tokens_BT.device)
    weights_BT = batch.weights_BT * (torch.arange(T, device=first_B1.device) >= first_B1)
    return Batch(batch.tokens_BT, batch.targets_BT, weights_BT, batch.documents_BT, float(weights_BT.sum()))


def looked_at(p: Patient, batch: Batch) -> str:
    rows, T = batch.tokens_BT.shape
    return f"{rows} rows of {T} tokens of {p.read_in_training}, of unlike weight"


# ------------------------------------------------------------------------------------------- the optimizer, and steps


def covered(p: Patient) -> Finding:
    """Every parameter is in exactly one group."""
    model = copy.deepcopy(p.learner)
    named = dict(model.named_parameters())
    what, todo = f"{len(named)} parameters", "mend the groups: look at train/optim.py"
    try:
        optimizer = p.optimizer(model)
    except AssertionError as error:
        return at_most(what, 1, 0, f"it refuses itself: {error}", todo)
    times = Counter(
        id(x) for part in optimizer.optimizers for group in part.param_groups for x in group["params"]
    )
    wrong = [f"{name} ({times[id(x)]} times)" for name, x in named.items() if times[id(x)] != 1]
    strangers = len(times.keys() - {id(x) for x in named.values()})
    frozen = [name for name, x in named.items() if not x.requires_grad]
    return at_most(
        what,
        len(wrong) + strangers + len(frozen),
        0,
        "parameters in no group, in several, or of another model"
        + (f": {some(wrong + frozen)}" if wrong + frozen else ""),
        todo,
    )


@dataclass(frozen=True)
class ShortTraining:
    """Three steps made twice: in one go, and with a save, a fresh start and a restore between two and three."""

    before: Transformer
    after: Transformer
    updates: list[Update]
    saved: dict[str, str]  # hashes at the save, weights and state
    loaded: dict[str, str]  # and after the restore
    resumed: Transformer
    resumed_at: int
    asked: list[int] = field(default_factory=list)  # which batches the resumed run read


@dataclass(frozen=True)
class Listening:
    """A source that remembers which steps were asked for."""

    source: Source
    asked: list[int]

    def batch(self, step: int) -> Batch:
        self.asked.append(step)
        return self.source.batch(step)


def short_training(p: Patient) -> ShortTraining:
    if "short training" not in p.made:
        p.made["short training"] = train_twice(p)
    return p.made["short training"]


def train_twice(p: Patient) -> ShortTraining:
    before, plan = p.learner, Plan(STEPS)
    member = as_member(p, copy.deepcopy(before))
    root, updates, saved = p.workspace / "checkpoints", [], {}
    for step in train([member], p.batches(), plan):
        updates.append(step.updates[member.name])
        if step.step == SAVED_AT:
            saved = whole_state(member)
            if resume.save(Checkpoints(root), step.step, [member], "0" * 64) is None:
                raise NotChecked("the disk refused a checkpoint in the temporary folder; make room")
    other = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)  # whatever the restore leaves out is not what it should be
    other.load_LE = ramp(other.load_LE)
    again = as_member(p, other)
    start = resume.restore(Checkpoints(root), [again])
    loaded, asked = whole_state(again), []  # type: tuple[dict[str, str], list[int]]
    for _ in train([again], Listening(p.batches(), asked), plan, start):
        pass
    return ShortTraining(before, member.model, updates, saved, loaded, again.model, start, asked)


def as_member(p: Patient, model: Transformer) -> Member:
    return Member("copy", model, partial(p.objective, balance=p.balance), p.optimizer(model), constant, STEPS)


def constant(progress: float) -> float:
    return 1.0


def whole_state(member: Member) -> dict[str, str]:
    """Hashes of each expert, every other weight, and everything else that a checkpoint keeps."""
    return digests(member.model) | {name: digest(x) for name, x in resume.state(member).items()}


def weights_move(p: Patient) -> Finding:
    """Three steps of the loop turn every matrix, and each expert that read something in the first."""
    done = short_training(p)
    reading = readers(done.before, p.batches().batch(0))
    first = dict(parts(done.before))
    still, looked = [], 0
    for name, part in parts(done.after):
        if ".experts." in name:
            layer, e = int(name.split(".")[1]), int(name[name.rindex("[") + 1 : -1])
            if e not in reading[layer]:
                continue
        looked += 1
        if not torch.isfinite(part).all() or (
            sine(part, first[name]) < TURNED if part.ndim > 1 else part.equal(first[name])
        ):
            still.append(name)
    skipped = sum(step.skipped for step in done.updates)
    return at_most(
        f"{STEPS} steps of the loop, {p.read_in_training}; {looked} weights, each expert that read something",
        len(still) + skipped,
        0,
        f"weights that stayed as they were, and steps left out{': ' + some(still) if still else ''}",
        "their gradient or their update is lost: see the checks on gradient and optimizer, and the learning rates",
    )


def load_follows(p: Patient) -> Finding:
    """After a step the model remembers the load of that step: the balancing term reads it in the next."""
    need_experts(p)
    done, batch = short_training(p), p.batches().batch(0)
    weights_N, E = batch.weights_BT.flatten(), p.config.num_experts
    counted_LE = torch.stack(
        [
            (torch.nn.functional.one_hot(r.experts_Nk, E).sum(1) * weights_N.unsqueeze(1)).sum(0)
            for r in routings(done.before, batch.tokens_BT, batch.documents_BT)
        ]
    ).cpu()
    counted_LE /= counted_LE.sum(-1, keepdim=True)
    first, last = (torch.tensor(done.updates[step].load_LE) for step in (0, -1))
    difference = max(relative(first, counted_LE), relative(done.after.load_LE.cpu(), last))
    return at_most(
        f"the load counted in the first of {STEPS} steps of the loop, and the one kept after the last",
        difference,
        TERM,
        "largest relative difference of an expert's share of the choices",
        "without it the balancing term is a constant: look at train/loop.py",
    )


def checkpoint(p: Patient) -> Finding:
    """Every expert, and what the optimizer knows of it, as it was when it was saved."""
    done = short_training(p)
    names = done.saved.keys() | done.loaded.keys()
    wrong = sorted(name for name in names if done.saved.get(name) != done.loaded.get(name))
    return at_most(
        f"{len(names)} hashes: weights, each expert its own, optimizer state, load",
        len(wrong),
        0,
        f"differing after save and restore{': ' + some(wrong) if wrong else ''}",
        "a resume would go on with other weights, in silence: look at train/resume.py and model/weights.py",
    )


def resumes(p: Patient) -> Finding:
    """Two steps, a restore, one more; against three in one go."""
    done = short_training(p)
    wrong = done.asked != [SAVED_AT]
    pairs = zip(done.resumed.parameters(), done.after.parameters(), strict=True)
    difference = max(relative(a.detach(), b.detach()) for a, b in pairs)
    return at_most(
        f"saved at step {SAVED_AT} of {STEPS}, went on at {done.resumed_at} and read the batches of steps {done.asked}",
        max(difference, float(wrong)),
        CLOSE,
        "largest relative difference of a weight from the run that was not interrupted (1: it read other batches)",
        "it begins again, or without its optimizer: look at train/resume.py and at who passes `start` on",
    )


def data_order(p: Patient) -> Finding:
    """A batch is a function of its number: whoever opens the text anew gets the same one, and another at each step."""
    if p.source is None:
        raise NotChecked("the training text is not at hand")
    read = p.source()
    in_order = [read.batch(step).tokens_BT for step in range(4)]
    alone = p.source().batch(3).tokens_BT
    once = not hasattr(read, "epochs") or read.epochs(4) <= 1  # a text of a few rows does come again
    repeated = sum(once and torch.equal(in_order[i], in_order[j]) for i in range(4) for j in range(i))
    return at_most(
        "batches 0 to 3 in order, and batch 3 of the same text opened anew",
        repeated + int(not torch.equal(in_order[3], alone)),
        0,
        "batches that repeat an earlier one, or depend on what was read before",
        "a resumed run would read again what it has read: the batch must follow from (seed, step) alone",
    )


CHECKS: dict[str, Check] = {
    "the loss is that of the text": loss_is_defined,
    "every weight gets gradient": every_weight_learns,
    "every expert that reads learns": every_expert_learns,
    "the balancing term reaches the routers": balancing_works,
    "microbatches change nothing": microbatches,
    "the optimizer has every weight once": covered,
    "every weight moves in training": weights_move,
    "the remembered load is the last step's": load_follows,
    "a checkpoint gives back what was saved": checkpoint,
    "a resumed run is the run": resumes,
    "the order of the data survives a resume": data_order,
}
