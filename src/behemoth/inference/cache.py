"""The keys and values of the tokens read so far, no more of them than a later token can see.

A chunk begins at slot 0 and the next one overwrites it: a layer with chunks keeps `chunk_size` slots however
long the row grows (slot = position mod chunk), a layer without positions keeps the whole row. As writing
always goes forward, "slot <= slot of the token being read" is the whole rule of visibility for both kinds:
what lies beyond is the chunk before, or the padding of a shorter prompt, and each such slot is overwritten
before it comes into sight.

Rows have lengths of their own, can be dropped when finished, and can be repeated, so that several answers to
one prompt read it once. Room grows by 16 slots: what attention reads of a row and head is then all there is of it,
and no product has to copy it first. When several tokens come at once (`expect`), some may lie in the
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

MULTIPLE = 16


def round_up(length: int) -> int:
    """To a multiple of 16, so that lengths are few: on a CPU in bf16 each new matrix shape costs the maths
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
        self.keys: list[Tensor] = []  # per layer, (B, G, room, K): as attention reads them
        self.values: list[Tensor] = []
        self.places: dict[bool, Place] = {}
        self.counts: list[int] | None = None  # what `expect` was told
        self.stretches: dict[bool, Stretch] = {}

    def expect(self, counts: Sequence[int]) -> None:
        """The next forward adds `counts` tokens, at least one, to the rows, padded on the right."""
        self.counts, self.stretches = list(counts), {}

    def store(self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor) -> None:
        """Keep of the prompts' keys and values what the next token of each row can see."""
        self.keys.append(by_head(self._of_interest(layer, k_BTGK)))
        self.values.append(by_head(self._of_interest(layer, v_BTGK)))
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
        at_N = line_of(keys, place.slot_B)
        keys.flatten(0, 2).index_copy_(0, at_N, k_B1GK.flatten(0, 2))
        values.flatten(0, 2).index_copy_(0, at_N, v_B1GK.flatten(0, 2))
        if layer == self.config.num_layers - 1:
            self.lengths = [length + 1 for length in self.lengths]
            self._prepare()
        keys, values = (x[:, :, : place.num_slots].transpose(1, 2) for x in (keys, values))
        return keys, values, place.visible_B1S

    def _append_several(
        self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        rope = self.config.has_rope(layer)
        if rope not in self.stretches:
            chunk, num_slots = self.config.chunk_size if rope else NEVER, self.keys[layer].shape[2]
            self.stretches[rope] = self._stretch(chunk, num_slots, k_BTGK.shape[1], counts)
        visible_BTA, kept_BS = self.stretches[rope]
        keys_BAGK = torch.cat([self.keys[layer].transpose(1, 2), k_BTGK], dim=1)
        values_BAGK = torch.cat([self.values[layer].transpose(1, 2), v_BTGK], dim=1)
        rows_B1 = torch.arange(len(k_BTGK), device=self.device).unsqueeze(1)
        self.keys[layer] = by_head(keys_BAGK[rows_B1, kept_BS])
        self.values[layer] = by_head(values_BAGK[rows_B1, kept_BS])
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
        index = torch.tensor(rows, device=self.device)
        self.keys = [keys.index_select(0, index) for keys in self.keys]
        self.values = [values.index_select(0, index) for values in self.values]
        self.lengths = [self.lengths[row] for row in rows]
        self._prepare()

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Go on without these rows: the last ones take their places, and nothing else is copied.

        Returns which row is now in each place. What shares this cache's memory is overwritten."""
        gone, count = set(rows), len(self.lengths) - len(rows)
        gaps = sorted(row for row in gone if row < count)
        last = [row for row in range(count, len(self.lengths)) if row not in gone]
        to, of = torch.tensor([gaps, last], dtype=torch.int64, device=self.device)
        for tensors in (self.keys, self.values):
            for layer, x_BGSK in enumerate(tensors):
                tensors[layer] = x_BGSK[:count].index_copy_(0, to, x_BGSK[of])
        stays = list(range(count))
        for gap, row in zip(gaps, last, strict=True):
            stays[gap] = row
        self.lengths = [self.lengths[row] for row in stays]
        self._prepare()
        return stays

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
        more = num_slots - self.keys[layer].shape[2]
        if more > 0:
            self.keys[layer] = widen(self.keys[layer], more)
            self.values[layer] = widen(self.values[layer], more)


def line_of(x_BGSK: Tensor, slot_B: Tensor) -> Tensor:
    """Which (K,) in memory are the slots of each row and head, (B * G,): copying lines costs half of a scatter."""
    B, G, S, _ = x_BGSK.shape
    return (torch.arange(0, B * G * S, S, device=slot_B.device).view(B, G) + slot_B.unsqueeze(1)).flatten()


def by_head(x_BSGK: Tensor) -> Tensor:
    return x_BSGK.transpose(1, 2).contiguous()


def widen(x_BGSK: Tensor, more: int) -> Tensor:
    """The same slots and `more` after them: zeros, because a masked slot has weight 0, and 0 * nan is nan."""
    return torch.cat([x_BGSK, x_BGSK.new_zeros(*x_BGSK.shape[:2], more, x_BGSK.shape[3])], dim=2)
