"""What one optimizer step reads.

Shapes: B rows, T slots of a row. The weight of a batch (its tokens' weights, or its pairs) is known before any
forward, so that the loop can divide a sum of losses once, over all microbatches and ranks.

Pretraining and fine-tuning pack several documents into a row; preferences and rollouts give each sequence a row of
its own, from slot 0 and padded on the right, so that chunk borders lie where they do when the model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from behemoth.base.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of T tokens, each with the token to predict, its share of the loss and its document.

    `weights_BT` is 0 where nothing is to be learnt: the first token of the next document, a prompt, padding.
    `documents_BT` numbers a row's documents from 0; None says that every row is one document.
    """

    together: ClassVar[int] = 1  # rows that no microbatch may part

    tokens_BT: Tensor  # int64
    targets_BT: Tensor  # int64
    weights_BT: Tensor  # float32
    documents_BT: Tensor | None  # int32
    weight: float

    def weigh(self) -> float:
        """The weight, counted anew from the tensors."""
        return float(self.weights_BT.sum())

    @property
    def documents(self) -> Tensor:
        """`documents_BT`, written out where it is None."""
        if self.documents_BT is None:
            return torch.zeros_like(self.tokens_BT, dtype=torch.int32)
        return self.documents_BT

    def to(self, device: torch.device | str) -> Self:
        return self.each(lambda x: x.to(device))

    def microbatches(self, n: int) -> list[Self]:
        """`n` batches of B/n rows each, in order; InputError when `n` does not divide the rows, or parts a pair."""
        units = self.tokens_BT.shape[0] // self.together
        if n < 1 or units % n:
            what = "rows" if self.together == 1 else "pairs"
            raise InputError(f"{n} microbatches do not divide {units} {what}; choose a divisor of {units}")
        size = units // n * self.together
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(n)]

    def rows(self, which: slice) -> Self:
        part = self.each(itemgetter(which))
        return replace(part, weight=part.weigh())

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with every tensor changed; the weight is kept."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        changed: dict[str, Any] = {name: change(x) for name, x in values if isinstance(x, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class Pairs(Batch):
    """Rows 2i and 2i + 1 are the preferred and the rejected answer to one prompt; the weight counts pairs.

    `weights_BT` is 1 on the answers' tokens. `reference_B` is the sum of those tokens' log-probabilities under the
    model that training starts from.
    """

    together: ClassVar[int] = 2

    reference_B: Tensor  # float32

    def weigh(self) -> float:
        return float(len(self.tokens_BT) // 2)


@dataclass(frozen=True, eq=False)
class Rollouts(Batch):
    """Answers that the model gave, and how much better than its group each was; the weight counts their tokens."""

    advantages_BT: Tensor  # float32
    sampled_BT: Tensor  # float32; the sampler's log-probability of each target, 0 where the weight is 0
    reference_BT: Tensor | None = None  # the same under the model that training starts from, for a KL term


def padded(
    rows: Sequence[Sequence[int]], masks: Sequence[Sequence[int]], multiple: int = 16, pad_id: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, targets, weights), each (B, T): one sequence per row, from slot 0.

    rows: ids, the first token included. masks: as long, 1 on what is to be predicted. T is the longest row's number of
    targets, rounded up to `multiple`; what is filled up has weight 0.
    """
    width = max(len(row) for row in rows) - 1
    width += -width % multiple
    tokens_BT = torch.full((len(rows), width + 1), pad_id)
    mask_BT = torch.zeros(len(rows), width + 1)
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        assert len(row) == len(mask), f"row {i} has {len(row)} tokens and a mask of {len(mask)}"
        tokens_BT[i, : len(row)] = torch.as_tensor(row)
        mask_BT[i, : len(row)] = torch.as_tensor(mask)
    return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), mask_BT[:, 1:].contiguous()
