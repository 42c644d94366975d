"""The keys and values of the tokens read so far, no more of them than a later token can see.

A chunk begins at slot 0 and the next one overwrites it: a layer with chunks keeps `chunk_size` slots however
long the row grows (slot = position mod chunk), a layer without positions keeps the whole row. As writing
always goes forward, "slot <= slot of the token being read" is the whole rule of visibility for both kinds:
what lies beyond is the chunk before, or the padding of a shorter prompt, and each such slot is overwritten
before it comes into sight.

Rows have lengths of their own, can be dropped when finished, and can be repeated, so that several answers to
one prompt read it once. Room grows by doubling. When several tokens come at once (`expect`), some may lie in the
chunk that others of them overwrite: then they look at what was kept and at each other, by position, and only
afterwards is kept what the next token can see. Left out: paging, and rows that join a batch already under way.

Shapes: B rows, T time, S slots, G key/value heads, K head size, A = S + T: the slots, and the new tokens after them.
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


class Stretch(NamedTuple):
    """What several new tokens of each row see, and what is kept of it for the next token."""

    visible_BTA: Tensor
    kept_BS: Tensor  # for each slot, which of A goes there; a slot of nothing yet holds anything


NEVER = 2**62  # a position, and a chunk, beyond every row


class KVCache:
    """The cache of one batch; `model(tokens_BT, cache=cache)` fills it, `model(tokens_B1, cache=cache)` adds.

    To add more than one token to each row, say first how many: `cache.expect(counts)`.

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
        self.counts: list[int] | None = None  # what `expect` was told
        self.stretches: dict[bool, Stretch] = {}

    def expect(self, counts: Sequence[int]) -> None:
        """The next forward adds `counts` tokens, at least one, to the rows, padded on the right."""
        self.counts, self.stretches = list(counts), {}

    def store(self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor) -> None:
        """Keep of the prompts' keys and values what the next token of each row can see."""
        self.keys.append(self._of_interest(layer, k_BTGK))
        self.values.append(self._of_interest(layer, v_BTGK))
        if layer == self.config.num_layers - 1:
            self.empty = False
            self._prepare()

    def append(self, layer: int, k_B1GK: Tensor, v_B1GK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add one token to each row: (keys_BSGK, values_BSGK, visible_B1S), the new token among them.

        After `expect`, several: (keys_BAGK, values_BAGK, visible_BTA)."""
        if self.counts is not None:
            return self._append_several(layer, k_B1GK, v_B1GK, self.counts)
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

    def _append_several(
        self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        rope = self.config.has_rope(layer)
        if rope not in self.stretches:
            chunk, num_slots = self.config.chunk_size if rope else NEVER, self.keys[layer].shape[1]
            self.stretches[rope] = self._stretch(chunk, num_slots, k_BTGK.shape[1], counts)
        visible_BTA, kept_BS = self.stretches[rope]
        keys_BAGK = torch.cat([self.keys[layer], k_BTGK], dim=1)
        values_BAGK = torch.cat([self.values[layer], v_BTGK], dim=1)
        rows_B1 = torch.arange(len(k_BTGK), device=self.device).unsqueeze(1)
        self.keys[layer], self.values[layer] = keys_BAGK[rows_B1, kept_BS], values_BAGK[rows_B1, kept_BS]
        if layer == self.config.num_layers - 1:
            self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
            self.counts = None
            self._prepare()
        return keys_BAGK, values_BAGK, visible_BTA

    def _stretch(self, chunk: int, num_slots: int, T: int, counts: list[int]) -> Stretch:
        """Every key has a position: a token sees those of its own chunk that are not after it."""
        length_B1 = self.positions_B.unsqueeze(1)
        begins_B1 = length_B1 // chunk * chunk  # where slot 0 lies
        old_BS = begins_B1 + torch.arange(num_slots, device=self.device)
        old_BS = torch.where(old_BS < length_B1, old_BS, NEVER)
        new_BT = length_B1 + torch.arange(T, device=self.device)
        key_B1A, query_BT1 = torch.cat([old_BS, new_BT], dim=1).unsqueeze(1), new_BT.unsqueeze(2)
        visible_BTA = (key_B1A <= query_BT1) & (key_B1A >= query_BT1 // chunk * chunk)

        after_B1 = length_B1 + torch.tensor(counts, device=self.device).unsqueeze(1)
        longest = int((after_B1 % chunk).max()) + 1
        kept_BS = after_B1 // chunk * chunk + torch.arange(min(round_up(longest), chunk), device=self.device)
        is_old = kept_BS < length_B1
        kept_BS = torch.where(is_old, kept_BS - begins_B1, kept_BS - length_B1 + num_slots)
        return Stretch(visible_BTA, kept_BS.clamp(max=num_slots + T - 1))

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
