"""The keys and values of the tokens read so far, no more of them than a later token can see.

A chunk begins at slot 0 and the next one overwrites it: a layer with chunks keeps `chunk_size` slots however
long the row grows (slot = position mod chunk), a layer without positions keeps the whole row. As writing
always goes forward, "slot <= slot of the token being read" is the whole rule of visibility for both kinds:
what lies beyond is the chunk before, or the padding of a shorter prompt, and each such slot is overwritten
before it comes into sight.

Rows have lengths of their own, can be dropped when finished, and can be repeated, so that several answers to
one prompt read it once. Room grows by doubling. Left out: paging, and rows that join a batch already under
way.

Shapes: B rows, T time, S slots, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from behemoth.model.config import ModelConfig

MULTIPLE = 32


def round_up(length: int) -> int:
    """To a multiple of 32, so that lengths are few: on a CPU in bf16 each new matrix shape costs the maths
    library milliseconds of code generation, more than a small model needs for a token."""
    return -(-length // MULTIPLE) * MULTIPLE


class Place(NamedTuple):
    """Where the next token of each row goes, and what it sees; the same for every layer of one kind."""

    slot_B: Tensor
    num_slots: int  # as many as the longest row uses, the new token included, rounded up
    visible_B1S: Tensor


class KVCache:
    """The cache of one batch; `model(tokens_BT, cache=cache)` fills it, `model(tokens_B1, cache=cache)` adds.

    lengths: tokens of each prompt; the first forward is given the prompts padded on the right. When the last
    layer has written, every row moves on: `lengths` counts what each row holds.
    """

    def __init__(self, config: ModelConfig, lengths: Sequence[int], device: torch.device | str = "cpu"):
        self.config, self.lengths, self.device = config, list(lengths), torch.device(device)
        self.empty = True
        self.positions_B = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.keys: list[Tensor] = []  # per layer, (B, room, G, K)
        self.values: list[Tensor] = []
        self.places: dict[bool, Place] = {}

    def store(self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor) -> None:
        """Keep of the prompts' keys and values what the next token of each row can see."""
        self.keys.append(self._of_interest(layer, k_BTGK))
        self.values.append(self._of_interest(layer, v_BTGK))
        if layer == self.config.num_layers - 1:
            self.empty = False
            self._prepare()

    def append(self, layer: int, k_B1GK: Tensor, v_B1GK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add one token to each row: (keys_BSGK, values_BSGK, visible_B1S), the new token among them."""
        place = self.places[self.config.has_rope(layer)]
        self._make_room(layer, place.num_slots)
        keys, values = self.keys[layer], self.values[layer]
        index_B1GK = place.slot_B.view(-1, 1, 1, 1).expand_as(k_B1GK)
        keys.scatter_(1, index_B1GK, k_B1GK)
        values.scatter_(1, index_B1GK, v_B1GK)
        if layer == self.config.num_layers - 1:
            self.lengths = [length + 1 for length in self.lengths]
            self._prepare()
        return keys[:, : place.num_slots], values[:, : place.num_slots], place.visible_B1S

    def take(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order: leave some out, or name one several times."""
        self.lengths = [self.lengths[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        self.keys = [keys.index_select(0, index) for keys in self.keys]
        self.values = [values.index_select(0, index) for values in self.values]
        self._prepare()

    def _prepare(self) -> None:
        """Work out the next token's place once for all layers."""
        self.positions_B = torch.tensor(self.lengths, device=self.device)
        chunk = self.config.chunk_size
        longest, longest_chunk = max(self.lengths), max(length % chunk for length in self.lengths)
        self.places = {
            False: self._place(self.positions_B, round_up(longest + 1)),
            True: self._place(self.positions_B % chunk, min(round_up(longest_chunk + 1), chunk)),
        }

    def _place(self, slot_B: Tensor, num_slots: int) -> Place:
        visible_BS = torch.arange(num_slots, device=self.device) <= slot_B.unsqueeze(1)
        return Place(slot_B, num_slots, visible_BS.unsqueeze(1))

    def _of_interest(self, layer: int, x_BTGK: Tensor) -> Tensor:
        """The whole row, or of each row the chunk that its next token belongs to."""
        T, chunk = x_BTGK.shape[1], self.config.chunk_size
        if not self.config.has_rope(layer) or chunk > T:
            return x_BTGK
        starts_B1 = torch.tensor(self.lengths, device=self.device).unsqueeze(1) // chunk * chunk
        slots_BC = (starts_B1 + torch.arange(chunk, device=self.device)).clamp(max=T - 1)
        rows_B1 = torch.arange(len(x_BTGK), device=self.device).unsqueeze(1)
        return x_BTGK[rows_B1, slots_BC]

    def _make_room(self, layer: int, num_slots: int) -> None:
        room = self.keys[layer].shape[1]
        if num_slots <= room:
            return
        more = max(room, MULTIPLE)
        if self.config.has_rope(layer):
            more = min(more, self.config.chunk_size - room)
        self.keys[layer] = widen(self.keys[layer], more)
        self.values[layer] = widen(self.values[layer], more)


def widen(x_BSGK: Tensor, more: int) -> Tensor:
    """The same slots and `more` after them: zeros, because a masked slot has weight 0, and 0 * nan is nan."""
    return torch.cat([x_BSGK, x_BSGK.new_zeros(len(x_BSGK), more, *x_BSGK.shape[2:])], dim=1)
