"""Learn from a teacher that is itself learning (Llama 4's co-distillation).

    loss per token = (1 - soft) * -log p(next token) + soft * KL(teacher || student)

over the whole vocabulary. The teacher is the *running average* of the weights that are being trained in the same
run: from the raw moving weights a student gains little, because at a constant learning rate they are noisy; the
average is close to what they will be after the decay (docs/log.md has the measurements).

Leaves out: temperatures (0.5 to 2 make no difference in arXiv 2410.16215), and students with another tokenizer.
"""

from __future__ import annotations

import torch

from behemoth.data.batch import Batch
from behemoth.model.transformer import Transformer
from behemoth.objectives.loss import Loss, SoftTarget
from behemoth.objectives.next_token import predict


def distill(model: Transformer, batch: Batch, *, teacher: Transformer, soft: float, balance: float) -> Loss:
    """Sum over tokens; `soft` is the teacher's share of the target. No gradient reaches the teacher."""
    with torch.no_grad():
        hidden_ND = teacher(batch.tokens_BT, batch.documents_BT).hidden_BTD.flatten(0, 1)
    target = SoftTarget(hidden_ND, teacher.lm_head.weight.detach(), soft)
    return predict(model, model(batch.tokens_BT, batch.documents_BT), batch, balance, target)
