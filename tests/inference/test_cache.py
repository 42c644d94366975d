"""Cached decoding against the full forward, and what the cache holds."""

import pytest
import torch

from behemoth.inference.cache import KVCache
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer


def tiny(moe_every: int, **changes: object) -> Transformer:
    """Eight layers, chunks of 8, a temperature that rises every 8 positions, weights large enough to tell."""
    config = ModelConfig(
        **{
            "vocab_size": 64,
            "hidden_size": 32,
            "num_layers": 8,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_size": 8,
            "dense_size": 48,
            "expert_size": 24,
            "num_experts": 4,
            "moe_every": moe_every,
            "chunk_size": 8,
            "temperature_floor": 8,
            "temperature_scale": 0.5,
            "context_length": 64,
            "init_std": 0.3,
        }
        | changes
    )
    return Transformer(config).initialise(torch.Generator().manual_seed(0))


def rows(count: int, length: int) -> torch.Tensor:
    return torch.randint(64, (count, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("moe_every", [1, 2], ids=["scout", "maverick"])
@pytest.mark.parametrize("prompt", [1, 7, 8, 17])
@torch.no_grad()
def test_cached_decode_equals_full_forward_at_every_position(moe_every: int, prompt: int) -> None:
    model, tokens_BT = tiny(moe_every), rows(2, 27)
    full_BTD = model(tokens_BT).hidden_BTD
    cache = KVCache(model.config, [prompt, prompt])
    read_BTD = model(tokens_BT[:, :prompt], cache=cache).hidden_BTD
    torch.testing.assert_close(read_BTD, full_BTD[:, :prompt], atol=1e-5, rtol=1e-5)
    for t in range(prompt, 27):
        step_B1D = model(tokens_BT[:, t : t + 1], cache=cache).hidden_BTD
        torch.testing.assert_close(step_B1D[:, 0], full_BTD[:, t], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_different_lengths_never_see_the_padding() -> None:
    model, tokens_BT, lengths = tiny(1), rows(4, 40), [3, 8, 13, 24]
    full_BTD = model(tokens_BT).hidden_BTD
    prompts = tokens_BT[:, :24].clone()
    for row, length in enumerate(lengths):
        prompts[row, length:] = 63
    cache = KVCache(model.config, lengths)
    model(prompts, cache=cache)
    for step in range(15):
        at = torch.tensor(lengths) + step
        step_BD = model(tokens_BT[range(4), at].unsqueeze(1), cache=cache).hidden_BTD[:, 0]
        torch.testing.assert_close(step_BD, full_BTD[range(4), at], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_can_leave_and_be_repeated() -> None:
    model, tokens_BT = tiny(2), rows(3, 20)
    full_BTD = model(tokens_BT).hidden_BTD
    cache = KVCache(model.config, [10, 10, 10])
    model(tokens_BT[:, :10], cache=cache)
    cache.take([2, 0, 2])
    for t in range(10, 20):
        step_BD = model(tokens_BT[[2, 0, 2], t : t + 1], cache=cache).hidden_BTD[:, 0]
        torch.testing.assert_close(step_BD, full_BTD[[2, 0, 2], t], atol=1e-5, rtol=1e-5)
    assert cache.lengths == [20, 20, 20]


@pytest.mark.parametrize("gone", [[0], [3], [1, 2], [0, 3], [2, 0, 1]])
@torch.no_grad()
def test_the_last_rows_take_the_places_of_those_dropped(gone: list[int]) -> None:
    model, tokens_BT = tiny(2), rows(4, 20)
    full_BTD = model(tokens_BT).hidden_BTD
    cache = KVCache(model.config, [10, 9, 8, 7])
    model(tokens_BT[:, :10], cache=cache)
    stays = cache.drop(gone)
    assert sorted(stays) == sorted({0, 1, 2, 3} - set(gone))
    assert cache.lengths == [10 - row for row in stays]
    for _ in range(9):
        at = list(cache.lengths)
        step_BD = model(tokens_BT[stays, at].unsqueeze(1), cache=cache).hidden_BTD[:, 0]
        torch.testing.assert_close(step_BD, full_BTD[stays, at], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", [1, 5, 20])
@torch.no_grad()
def test_layers_with_chunks_hold_no_more_than_a_chunk(prompt: int) -> None:
    model, tokens_BT = tiny(2), rows(2, 60)
    cache = KVCache(model.config, [prompt, prompt])
    model(tokens_BT[:, :prompt], cache=cache)
    for t in range(prompt, 60):
        model(tokens_BT[:, t : t + 1], cache=cache)
    slots = [keys.shape[2] for keys in cache.keys]
    assert [slots[layer] for layer in (0, 1, 2, 4, 5, 6)] == [8] * 6
    assert all(60 <= slots[layer] <= 120 for layer in (3, 7))
    assert [values.shape[2] for values in cache.values] == slots


@torch.no_grad()
def test_a_short_row_takes_little_room() -> None:
    model = tiny(1, chunk_size=4096)
    cache = KVCache(model.config, [2])
    model(rows(1, 2), cache=cache)
    model(rows(1, 1), cache=cache)
    assert max(keys.shape[2] for keys in cache.keys) <= 64


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [3, 8, 13, 24], [7, 15, 16, 17]])
@pytest.mark.parametrize("counts", [[1, 5, 8, 2], [9, 1, 16, 8], [2, 2, 2, 2]])
@torch.no_grad()
def test_several_tokens_at_once_equal_the_full_forward_whatever_borders_they_cross(
    lengths: list[int], counts: list[int]
) -> None:
    """Twice, then one by one: what is kept after a stretch must serve all that follows."""
    model, tokens_BT = tiny(1), rows(4, 64)
    full_BTD = model(tokens_BT).hidden_BTD
    cache = KVCache(model.config, lengths)
    model(tokens_BT[:, : max(lengths)], cache=cache)
    for stretch in [counts, counts[::-1], [1, 1, 1, 1], counts]:
        at_BT = torch.tensor(cache.lengths).unsqueeze(1) + torch.arange(max(stretch))
        new_BT = tokens_BT.gather(1, at_BT.clamp(max=63))
        for row, count in enumerate(stretch):
            new_BT[row, count:] = 63
        before = list(cache.lengths)
        if stretch != [1, 1, 1, 1]:
            cache.expect(stretch)
        found_BTD = model(new_BT, cache=cache).hidden_BTD
        for row, count in enumerate(stretch):
            want = full_BTD[row, before[row] : before[row] + count]
            torch.testing.assert_close(found_BTD[row, :count], want, atol=1e-5, rtol=1e-5)
    assert cache.lengths == [n + 2 * c + d + 1 for n, c, d in zip(lengths, counts, counts[::-1], strict=True)]
