"""What can be seen in the weights alone: that they are numbers, that no two are copies, that training moved them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from behemoth.base.units import some
from behemoth.doctor.patient import Check, Finding, NotChecked, Patient, at_least, at_most
from behemoth.export.receipt import digest
from behemoth.model.transformer import Transformer

APART = 1e-2  # of an expert's norm; independent ones are 1.4 apart, copies in other precisions 0.004 at most
EMPTY = 1e-3  # of the median expert's norm
MOVED_FP32, MOVED_ROUNDED = 1e-4, 1e-2  # sine of the angle; rounding to bf16 alone turns a matrix by 0.002


def parts(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Every weight by name, the stacked experts one by one."""
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            yield from ((f"{name}[{e}]", expert) for e, expert in enumerate(parameter.detach()))
        else:
            yield name, parameter.detach()


def digests(model: Transformer) -> dict[str, str]:
    """A hash of each part, so that two models can be compared expert by expert."""
    return {name: digest(part) for name, part in parts(model)}


def expert_pairs(model: Transformer) -> Iterator[tuple[str, list[Tensor]]]:
    """Per sparse layer and kind of matrix, the experts flat, (size,) each."""
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            yield name, [expert.flatten().float() for expert in parameter.detach()]


def finite(p: Patient) -> Finding:
    bad = {name: int((~part.isfinite()).sum()) for name, part in parts(p.model)}
    bad = {name: count for name, count in bad.items() if count}
    return at_most(
        f"{sum(x.numel() for x in p.model.parameters()):,} weights",
        sum(bad.values()),
        0,
        f"weights that are nan or infinite{': ' + some(list(bad)) if bad else ''}",
        "go back to the newest checkpoint without them and lower the learning rate; look at the batch that did it",
    )


def copies(p: Patient) -> Finding:
    """Experts or matrices, of any layers, that are the same to the last bit."""
    groups = defaultdict(list)
    for name, part in parts(p.model):
        if part.ndim > 1:
            groups[digest(part)].append(name)
    same = [" = ".join(names[:3]) for names in groups.values() if len(names) > 1]
    return at_most(
        f"{sum(map(len, groups.values()))} matrices, each expert its own, across all layers",
        len(same),
        0,
        f"groups of matrices that are identical{': ' + some(same) if same else ''}",
        "a copy was written where another weight belongs: look at how the weights were loaded or converted",
    )


def apart(p: Patient) -> Finding:
    """The two most alike experts of a layer, where copies in another precision would still be found."""
    need_experts(p)
    closest, where = float("inf"), ""
    for name, experts in expert_pairs(p.model):
        stack = torch.stack(experts)
        norms = stack.norm(dim=1).clamp_min(1e-30)
        for i in range(len(experts) - 1):
            distances = (stack[i + 1 :] - stack[i]).norm(dim=1) / torch.maximum(norms[i + 1 :], norms[i])
            if float(distances.min()) < closest:
                closest, where = (
                    float(distances.min()),
                    f"{name}[{i}] and [{i + 1 + int(distances.argmin())}]",
                )
    if where == "":
        raise NotChecked("there is one expert only")
    return at_least(
        f"every pair of the {p.config.num_experts} experts of {len(p.config.sparse_layers)} layers",
        closest,
        APART,
        f"smallest distance of two experts, as a share of their norm ({where})",
        "they were initialised or converted as copies, and with equal router rows stay so: draw them anew",
    )


def not_empty(p: Patient) -> Finding:
    need_experts(p)
    smallest, where = float("inf"), ""
    for name, experts in expert_pairs(p.model):
        norms = torch.stack([expert.norm() for expert in experts])
        share = norms / norms.median().clamp_min(1e-30)
        if float(share.min()) < smallest:
            smallest, where = float(share.min()), f"{name}[{int(share.argmin())}]"
    return at_least(
        f"{p.config.num_experts} experts of {len(p.config.sparse_layers)} layers",
        smallest,
        EMPTY,
        f"norm of the weakest expert, as a share of the median one of its layer ({where})",
        "its weights were not saved or not loaded, or decayed to nothing unused: compare with an older checkpoint",
    )


def moved(p: Patient) -> Finding:
    """Every matrix has turned since step 0. Weight decay alone shrinks a weight but does not turn it."""
    if not p.trained:
        raise NotChecked("no step was made yet; another check makes a few")
    if p.initial is None:
        raise NotChecked(
            "the weights it began with are not known: no recipe and seed to draw them from again"
        )
    first = dict(parts(p.initial))
    rounded = p.model.embed_tokens.weight.dtype != torch.float32
    turned = {name: sine(part, first[name]) for name, part in parts(p.model) if part.ndim > 1}
    name = min(turned, key=lambda key: turned[key])
    limit = MOVED_ROUNDED if rounded else MOVED_FP32
    still = [key for key, value in turned.items() if value < limit]
    return at_least(
        f"{len(turned)} matrices, each expert its own, against those drawn from the run's seed",
        turned[name],
        limit,
        f"sine of the smallest angle between a matrix and its initial value ({some(still) if still else name})",
        "these were never trained: no token, no gradient, or left out of the optimizer or of the checkpoint",
    )


def sine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two weights as vectors; 0 when one is a multiple of the other."""
    a, b = a.flatten().double(), b.to(a.device, a.dtype).flatten().double()
    a, b = (x / x.norm().clamp_min(1e-300) for x in (a, b))
    return float((a - (a @ b) * b).norm())


def tied(p: Patient) -> Finding:
    """One matrix for embedding and head, or two, as the configuration says."""
    head, embedding = p.model.lm_head.weight, p.model.embed_tokens.weight
    same = head is embedding
    meant = p.config.tie_embeddings
    return at_most(
        f"tie_embeddings = {str(meant).lower()}; head and embedding are {'one' if same else 'two'}",
        int(same != meant) + int(not same and torch.equal(head, embedding)),
        0,
        "disagreements: two matrices where one was meant, one where two were, or two that are equal",
        "load the weights again with the configuration they were trained with",
    )


def control(p: Patient) -> Finding:
    """A student that had a teacher is not the student that had none."""
    if p.control is None:
        raise NotChecked("it is not a student with a control beside it")
    if not p.trained:
        raise NotChecked("no step was made yet")
    other = dict(parts(p.control))
    apart = {name: sine(part, other[name]) for name, part in parts(p.model) if part.ndim > 1}
    return at_least(
        f"{len(apart)} matrices of the student against its control's",
        max(apart.values()),
        MOVED_FP32,
        "sine of the largest angle between the student's weights and those of the control",
        "the teacher's part of the loss never reached the student: look at students.soft and the objective",
    )


def need_experts(p: Patient) -> None:
    if not p.config.sparse_layers:
        raise NotChecked("the model has no experts")


CHECKS: dict[str, Check] = {
    "weights are numbers": finite,
    "no weight is another's copy": copies,
    "experts differ from their siblings": apart,
    "no expert is empty": not_empty,
    "weights differ from their initialisation": moved,
    "embeddings are tied as configured": tied,
    "the teacher made a difference": control,
}
