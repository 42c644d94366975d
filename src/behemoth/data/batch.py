"""What one optimizer step reads.

Shapes: B rows, T slots of a row. The weight of a batch is the sum of its tokens' weights and is known before
any forward, so that the loop can divide a sum of losses once, over all microbatches and ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from behemoth.base.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of T tokens, each with the token to predict, its share of the loss and its document.

    Rows are packed, so every slot is a token of a document and none is padding. `weights_BT` is 0 where nothing
    is to be learnt (the first token of the next document); `documents_BT` numbers a row's documents from 0.
    """

    tokens_BT: Tensor  # int64
    targets_BT: Tensor  # int64
    weights_BT: Tensor  # float32
    documents_BT: Tensor  # int32
    weight: float

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            tokens_BT=self.tokens_BT.to(device),
            targets_BT=self.targets_BT.to(device),
            weights_BT=self.weights_BT.to(device),
            documents_BT=self.documents_BT.to(device),
        )

    def microbatches(self, n: int) -> list[Batch]:
        """`n` batches of B/n rows each, in order; InputError when `n` does not divide B."""
        rows = self.tokens_BT.shape[0]
        if n < 1 or rows % n:
            raise InputError(f"{n} microbatches do not divide {rows} rows; choose a divisor of {rows}")
        parts = zip(
            self.tokens_BT.chunk(n),
            self.targets_BT.chunk(n),
            self.weights_BT.chunk(n),
            self.documents_BT.chunk(n),
            strict=True,
        )
        return [Batch(*part, weight=float(part[2].sum())) for part in parts]
