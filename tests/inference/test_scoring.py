"""Continuations after a shared prompt against the whole row through `Engine.logprobs`, and stop strings."""

import numpy as np
import pytest
import torch

from behemoth.base.errors import InputError
from behemoth.inference import scoring
from behemoth.inference.engine import Engine, StopText
from behemoth.inference.scoring import score
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer


def tiny(dtype: torch.dtype = torch.float32, **changes: object) -> Transformer:
    """Chunks of 8 in rows of up to 64, and a layer that sees the whole row."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 8,
        "dense_size": 48,
        "expert_size": 24,
        "num_experts": 4,
        "chunk_size": 8,
        "temperature_floor": 8,
        "context_length": 64,
        "init_std": 0.3,
    }
    return Transformer(ModelConfig(**(settings | changes)), dtype).initialise(
        torch.Generator().manual_seed(0)
    )


def tokens(*lengths: int, seed: int = 1) -> list[list[int]]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randint(64, (length,), generator=draws).tolist() for length in lengths]


def questions(prompt_lengths: list[int], continuations: list[int]) -> list[tuple[list[int], list[int]]]:
    """Every prompt with continuations of these lengths, in an order that keeps nothing together."""
    pairs = [
        (prompt, continuation)
        for n, prompt in enumerate(tokens(*prompt_lengths))
        for continuation in tokens(*continuations, seed=n + 2)
    ]
    return pairs[::2] + pairs[1::2]


@pytest.mark.parametrize("shared", [1, 16], ids=["all shared", "long ones shared"])
@pytest.mark.parametrize("batch_tokens", [60, 10_000], ids=["many batches", "one batch"])
@pytest.mark.parametrize(
    "pairs",
    [
        questions([1, 7, 8, 9, 15, 16, 17, 40], [1, 2, 8, 9, 24]),  # borders before, at and after every part
        questions([3, 40, 12], [7]),  # nothing shared
        questions([20], [1, 1, 1, 1]),  # letters
        questions([1], [30, 29, 31]),  # hardly anything shared
    ],
    ids=["borders", "alone", "letters", "sentences"],
)
def test_continuations_equal_the_whole_row(
    pairs: list[tuple[list[int], list[int]]], batch_tokens: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "WORTH_SHARING", shared)
    engine = Engine(tiny(), batch_tokens=batch_tokens)
    whole = engine.logprobs([prompt + continuation for prompt, continuation in pairs])
    for (prompt, continuation), row, scored in zip(pairs, whole, score(engine, pairs), strict=True):
        assert len(scored.logprobs) == len(scored.greedy) == len(continuation)
        np.testing.assert_allclose(scored.logprobs, row[len(prompt) - 1 :], atol=1e-5)


def test_greedy_is_what_generation_writes() -> None:
    engine = Engine(tiny())
    prompts = tokens(1, 9, 30)
    written = [done.tokens for done in engine.generate(prompts, max_tokens=6)]
    pairs = [(p, w[:n]) for p, w in zip(prompts, written, strict=True) for n in (1, 3, 6)]
    assert all(scored.greedy.all() for scored in score(engine, pairs))
    other = [(p, [*w[:2], (w[2] + 1) % 64, w[3]]) for p, w in zip(prompts, written, strict=True)]
    for scored in score(engine, other + other):
        assert scored.greedy[:3].tolist() == [True, True, False]


def test_a_row_may_be_one_token_longer_than_the_context_and_no_more() -> None:
    engine, (prompt, one, two) = Engine(tiny()), tokens(64, 1, 2)
    assert len(score(engine, [(prompt, one), (prompt, one)])[1].logprobs) == 1
    with pytest.raises(InputError, match="66 tokens and the context holds 64"):
        score(engine, [(prompt, one), (prompt, two)])
    with pytest.raises(InputError, match="not among the model's 64"):
        score(engine, [([1], [64])])


def test_nothing_to_score_is_no_scores() -> None:
    found = score(Engine(tiny()), [([1, 2], []), ([1, 2], [3])])
    assert [len(scored.logprobs) for scored in found] == [0, 1]
    assert score(Engine(tiny()), []) == []


def test_bf16_is_scored_in_padded_shapes_to_nearly_the_same() -> None:
    model, pairs = tiny(dtype=torch.bfloat16), questions([5, 17], [1, 6, 12])
    engine = Engine(model)
    whole = engine.logprobs([prompt + continuation for prompt, continuation in pairs])
    for (prompt, _), row, scored in zip(pairs, whole, score(engine, pairs), strict=True):
        np.testing.assert_allclose(scored.logprobs, row[len(prompt) - 1 :], atol=0.5)


# ------------------------------------------------------------------------------------------------- stop strings

LETTERS = [bytes([97 + i % 26]) * (1 + i // 26) for i in range(64)]  # a .. z, aa .. zz, aaa ..


def test_a_row_ends_with_the_token_that_completes_a_stop_string() -> None:
    engine, prompts = Engine(tiny()), tokens(4, 9, 2, 20)
    free = [done.tokens for done in engine.generate(prompts, max_tokens=20)]
    texts = [b"".join(LETTERS[id] for id in ids) for ids in free]
    string = texts[0][4:7]  # begins and ends inside tokens as it comes
    stopped = engine.generate(prompts, max_tokens=20, stop_text=StopText((string, b"never"), LETTERS))
    assert stopped[0].finish == "stop"
    for ids, done in zip(free, stopped, strict=True):
        count = next((n for n in range(1, 21) if string in b"".join(LETTERS[id] for id in ids[:n])), len(ids))
        assert done.tokens == ids[:count]


@pytest.mark.parametrize("string", [b"\n", b"ab\nc", b"abcdefgh"])
def test_a_stop_string_is_found_wherever_tokens_are_cut(string: bytes) -> None:
    text = b"xxab\n" + string + b"yy"
    for width in (1, 2, 3, 5):
        pieces = [text[a : a + width] for a in range(0, len(text), width)]
        stop, tail, read = StopText((b"zz", string), pieces), b"", b""
        for id, piece in enumerate(pieces):
            said, tail = stop.follow(tail, id)
            read += piece
            assert said == (string in read)
            if said:
                break
        else:
            pytest.fail("not found")
