"""The mathematics against slower writings of itself: brute-force masks, documents alone, no look ahead."""

import pytest
import torch
from torch import Tensor

from behemoth.model import transformer
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Attention, Transformer, attend_plainly

CHUNK = 8


@pytest.fixture
def config(tiny_config: ModelConfig) -> ModelConfig:
    """Chunks of 8, two experts for each token, and a temperature that documents do not feel."""
    return tiny_config.model_copy(
        update={"chunk_size": CHUNK, "experts_per_token": 2, "temperature_floor": 1000, "init_std": 0.3}
    )


@pytest.fixture
def model(config: ModelConfig) -> Transformer:
    return Transformer(config).initialise(torch.Generator().manual_seed(0))


def rows(length: int, num_rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(96, (num_rows, length), generator=torch.Generator().manual_seed(seed))


def documents(*lengths: int) -> Tensor:
    """One row of documents of these lengths."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).unsqueeze(0)


# ----------------------------------------------------------------------------------------------------- attention


def by_brute_force(monkeypatch: pytest.MonkeyPatch, documents_BT: Tensor) -> None:
    """From here on attention is one dense product with an explicit (T, T) mask, made pair by pair."""
    B, length = documents_BT.shape
    seen = torch.zeros(B, length, length, dtype=torch.bool)
    for b in range(B):
        for i in range(length):
            for j in range(i + 1):
                seen[b, i, j] = documents_BT[b, i] == documents_BT[b, j]
    chunk = torch.arange(length) // CHUNK
    near = seen & (chunk[:, None] == chunk[None, :])
    monkeypatch.setattr(transformer, "attend", lambda q, k, v, _: attend_plainly(q, k, v, seen))
    monkeypatch.setattr(Attention, "within_chunks", lambda self, q, k, v, row: attend_plainly(q, k, v, near))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("packed", [False, True])
def test_folded_chunks_are_the_brute_force_mask(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, length: int, packed: bool
) -> None:
    tokens_BT = rows(length)
    first = torch.tensor([min(3, length - 1), min(13, length - 1)])
    documents_BT = (torch.arange(length) > first[:, None]).int() if packed else torch.zeros_like(tokens_BT)
    fast = model(tokens_BT, documents_BT if packed else None).hidden_BTD
    fast_gradients = torch.autograd.grad(fast.pow(3).sum(), list(model.layers.parameters()))
    by_brute_force(monkeypatch, documents_BT)
    slow = model(tokens_BT).hidden_BTD
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    slow_gradients = torch.autograd.grad(slow.pow(3).sum(), list(model.layers.parameters()))
    for a, b in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_is_the_plain_one(dtype: torch.dtype, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 12, heads, 8, generator=generator).to(dtype) for heads in (6, 2, 2))
    mask_BTS = transformer.document_mask(documents(5, 7).expand(2, -1)) if masked else None
    exact = attend_plainly(q.float(), k.float(), v.float(), mask_BTS)
    for attend in (transformer.attend, attend_plainly):
        limit = 1e-5 if dtype == torch.float32 else 0.03
        assert (attend(q, k, v, mask_BTS).float() - exact).abs().max() < limit


# ----------------------------------------------------------------------------------------------- packed documents


def test_a_packed_document_is_the_document_alone(model: Transformer) -> None:
    """Chunk borders are at slots of the row, so each document starts at one, or ends before the next."""
    tokens_BT = rows(29, num_rows=1)
    packed = model(tokens_BT, documents(8, 16, 3, 2)).hidden_BTD
    for start, end in ((0, 8), (8, 24), (24, 27), (27, 29)):
        alone = model(tokens_BT[:, start:end]).hidden_BTD
        torch.testing.assert_close(packed[:, start:end], alone, rtol=1e-4, atol=1e-4)


def test_without_the_document_mask_they_would_differ(model: Transformer) -> None:
    tokens_BT = rows(16, num_rows=1)
    leaky = model(tokens_BT).hidden_BTD[:, 8:]
    assert (leaky - model(tokens_BT[:, 8:]).hidden_BTD).abs().max() > 0.01


def gradient_to_tokens(
    model: Transformer, tokens_BT: Tensor, documents_BT: Tensor | None, slot: int
) -> Tensor:
    """How much each token's embedding moves the hidden state of `slot`, (T,)."""
    kept: list[Tensor] = []

    def keep(_: object, __: object, embedded: Tensor) -> Tensor:
        kept.append(embedded.detach().requires_grad_())
        return kept[0]

    hook = model.embed_tokens.register_forward_hook(keep)
    hidden_BTD = model(tokens_BT, documents_BT).hidden_BTD
    hook.remove()
    return torch.autograd.grad(hidden_BTD[0, slot].sum(), kept[0])[0][0].abs().amax(-1)


@pytest.mark.parametrize("slot", [0, 6, 7, 8, 12, 20])
def test_exactly_the_document_before_it_is_seen(model: Transformer, slot: int) -> None:
    """Through the layers without positions a token sees its whole document, and nothing else, exactly."""
    row = documents(7, 9, 5)
    moved = gradient_to_tokens(model, rows(21, num_rows=1), row, slot)
    allowed = (row[0] == row[0, slot]) & (torch.arange(21) <= slot)
    assert not moved[~allowed].any()
    assert moved[allowed].min() > 0


def test_a_rope_layer_sees_its_chunk_and_no_further(config: ModelConfig) -> None:
    one_layer = Transformer(config.model_copy(update={"num_layers": 1})).initialise(
        torch.Generator().manual_seed(0)
    )
    moved = gradient_to_tokens(one_layer, rows(21, num_rows=1), None, slot=18)
    assert moved.nonzero().flatten().tolist() == [16, 17, 18]


@pytest.mark.parametrize("num_experts", [0, 4])
def test_other_documents_and_the_future_change_no_bit(config: ModelConfig, num_experts: int) -> None:
    model = Transformer(config.model_copy(update={"num_experts": num_experts}))
    model.initialise(torch.Generator().manual_seed(0))
    row, tokens_BT = documents(7, 9, 5), rows(21, num_rows=1)
    before = model(tokens_BT, row).hidden_BTD
    for changed in (slice(0, 7), slice(16, 21), slice(12, 16)):
        other = tokens_BT.clone()
        other[:, changed] = (other[:, changed] + 1) % 96
        same = slice(7, 12)  # the second document, up to where it is changed last
        assert torch.equal(model(other, row).hidden_BTD[:, same], before[:, same])


# ---------------------------------------------------------------------------------------------------------- model


def test_initialise_is_a_function_of_the_seed(config: ModelConfig) -> None:
    a, b, c = (Transformer(config).initialise(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for (name, x), y, z in zip(a.named_parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(x, y), name
        assert torch.equal(x, z) == (x.ndim == 1), name
    depth = (2 * config.num_layers) ** 0.5
    assert a.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(config.init_std, rel=0.1)
    assert a.layers[0].self_attn.o_proj.weight.std().item() == pytest.approx(config.init_std / depth, rel=0.1)


def test_routers_report_every_choice(model: Transformer) -> None:
    out = model(rows(21))
    choices = 2 * 21 * 2
    assert [routing.load_E.sum() for routing in out.routings] == [choices] * 4
    assert [experts.shape for experts in out.experts] == [(42, 2)] * 4


def test_weights_may_be_finer_than_the_activations(model: Transformer) -> None:
    """fp32 weights with bf16 activations are the bf16 model: the weights are rounded where they are used."""
    tokens_BT = rows(21)
    model.compute_dtype = torch.bfloat16
    mixed = model.logits(model(tokens_BT).hidden_BTD)
    frequencies = model.frequencies.clone()
    model.to(torch.bfloat16).frequencies = frequencies
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, model.logits(model(tokens_BT).hidden_BTD))


def test_temperature_at_its_published_points() -> None:
    """0.1 * ln(1 + floor((p + 1) / 8192)) + 1, at positions of the released models."""
    released = ModelConfig(
        vocab_size=8,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_size=8,
        dense_size=8,
        expert_size=8,
    )
    positions = torch.tensor([0.0, 8190, 8191, 16383, 262_143, 1_048_575])
    expected = torch.tensor([1.0, 1.0, 1.0693, 1.1099, 1.3497, 1.4860])
    torch.testing.assert_close(transformer.temperature(positions, released), expected, atol=5e-5, rtol=0)
