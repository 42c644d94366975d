"""Make answers more likely that did better than their group, and others less (GRPO, arXiv 2402.03300).

A token's advantage A is its answer's reward minus the mean of its group, and comes with the batch; it is not divided
by the group's deviation, which would favour the too easy and the too hard (Dr. GRPO, arXiv 2503.20783). The loss is a
sum over tokens, not a mean of answers, so a token of a long answer weighs as much as one of a short (DAPO, arXiv
2503.14476). With ratio = p(token) / p_sampler(token), a token loses

    -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)          PPO's surrogate, with DAPO's two bounds; or
    -stop_gradient(min(ratio, 1 + clip_high)) * A * log p                  one-sided: LlamaRL's AIPO, arXiv 2505.24034

The first drops tokens whose probability has moved too far already; the second weighs every token by how likely the
model would be to sample it now, up to a bound, which bears older samples. `kl` adds that much of the divergence from a
reference, estimated per token by Schulman's k3: exp(d) - d - 1, where d = log p_reference - log p.

Left out: a value network, and a bonus for entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from behemoth.data.batch import Rollouts
from behemoth.model.transformer import Transformer
from behemoth.objectives.logprobs import scores
from behemoth.objectives.loss import Loss
from behemoth.objectives.next_token import uneven


def policy_gradient(
    model: Transformer,
    batch: Rollouts,
    *,
    clip_low: float,
    clip_high: float,
    one_sided: bool,
    kl: float,
    balance: float,
) -> Loss:
    """Sum over the answers' tokens. `kl` above 0 needs the batch's reference_BT.

    The metric `drift` is how much likelier the sampler found what it sampled than this model does: the divergence
    between the two, where the sampler is older or computes in other precision. Near 0 all is well.
    """
    out = model(batch.tokens_BT, batch.documents_BT)
    logp_BT, entropy_BT = scores(model, out, batch)
    ratio_BT = (logp_BT - batch.sampled_BT).exp()
    surrogate = one_sided_surrogate if one_sided else clipped_surrogate
    loss_BT, clipped_BT = surrogate(logp_BT, ratio_BT, batch.advantages_BT, clip_low, clip_high)
    spread, load_LE = uneven(model, out, batch.weights_BT)
    by_token = {
        "loss": loss_BT,
        "ratio": ratio_BT,
        "clipped": clipped_BT.float(),
        "entropy": entropy_BT,
        "drift": batch.sampled_BT - logp_BT,
    }
    if batch.reference_BT is not None:
        by_token["kl"] = divergence(logp_BT, batch.reference_BT)
    sums = {name: (batch.weights_BT * value_BT).sum() for name, value_BT in by_token.items()}
    total = sums["loss"] + balance * spread
    if kl:
        total = total + kl * sums["kl"]
    return Loss(
        total, {name: value.detach() for name, value in (sums | {"balance": spread}).items()}, load_LE
    )


def clipped_surrogate(
    logp: Tensor, ratio: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Each token's loss, and whether the clip took its gradient away."""
    free, bounded = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(free, bounded), bounded < free


def one_sided_surrogate(
    logp: Tensor, ratio: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Each token's loss, and whether its weight met the bound; there is no lower one."""
    return -ratio.detach().clamp(max=1 + high) * advantage * logp, ratio > 1 + high


def divergence(logp: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(model || reference) from a token that the model sampled; never negative."""
    difference = reference - logp
    return difference.expm1() - difference
