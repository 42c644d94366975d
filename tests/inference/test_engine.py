"""The engine: batches against rows alone, the oracle, and every way an answer can end."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Llama4ForCausalLM
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig

from behemoth.base.errors import InputError
from behemoth.inference.engine import Engine, at_compute_precision, batches, pad
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import config_to_hf


def tiny(moe_every: int = 1, dtype: torch.dtype = torch.float32, **changes: object) -> Transformer:
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
        "moe_every": moe_every,
        "chunk_size": 8,
        "temperature_floor": 8,
        "context_length": 64,
        "init_std": 0.3,
    }
    return Transformer(ModelConfig(**(settings | changes)), dtype).initialise(
        torch.Generator().manual_seed(0)
    )


def prompts(*lengths: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(1)
    return [torch.randint(64, (length,), generator=draws).tolist() for length in lengths]


MIXED = prompts(1, 7, 8, 9, 20, 33, 7, 2)


@pytest.mark.parametrize("moe_every", [1, 2], ids=["scout", "maverick"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_tokens", [100, 10_000], ids=["many batches", "one batch"])
def test_a_batch_answers_as_each_row_alone(moe_every: int, temperature: float, batch_tokens: int) -> None:
    model, seeds = tiny(moe_every), [3, 1, 4, 1, 5, 9, 2, 6]
    how = {"temperature": temperature, "top_p": 0.9, "stop_ids": (0, 1, 2)}
    limits = [20, 5, 20, 1, 20, 20, 0, 11]
    together = Engine(model, batch_tokens=batch_tokens).generate(MIXED, max_tokens=limits, seeds=seeds, **how)
    engine = Engine(model)
    for prompt, limit, seed, answer in zip(MIXED, limits, seeds, together, strict=True):
        streamed = list(engine.stream(prompt, max_tokens=limit, seed=seed, **how))
        assert [token.id for token in streamed] == answer.tokens
        np.testing.assert_allclose([token.logprob for token in streamed], answer.logprobs, atol=1e-4)
        assert answer.prompt_tokens == len(prompt)
        assert streamed == [] or streamed[-1].finish == answer.finish
        assert all(token.finish is None for token in streamed[:-1])
    assert {answer.finish for answer in together} == {"stop", "length"}


@pytest.mark.parametrize("moe_every", [1, 2], ids=["scout", "maverick"])
@torch.no_grad()
def test_greedy_answers_are_those_of_transformers(moe_every: int) -> None:
    ours = tiny(moe_every)
    theirs = Llama4ForCausalLM(Llama4TextConfig(**config_to_hf(ours.config))).eval()
    theirs.load_state_dict(
        {k if k.startswith("lm_head") else f"model.{k}": v for k, v in ours.state_dict().items()}
    )
    for prompt, answer in zip(MIXED, Engine(ours).generate(MIXED, max_tokens=18), strict=True):
        row = torch.tensor([prompt])
        oracle = theirs.generate(  # without its cache: the mathematics, and chunk borders are crossed
            row, attention_mask=torch.ones_like(row), max_new_tokens=18, do_sample=False, use_cache=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert oracle[0, len(prompt) :].tolist() == answer.tokens


def test_logprobs_are_those_of_the_full_forward() -> None:
    model = tiny()
    scores = Engine(model, batch_tokens=80).logprobs(MIXED)
    for row, score in zip(MIXED, scores, strict=True):
        with torch.no_grad():
            full_TV = model.logits(model(torch.tensor([row])).hidden_BTD)[0].log_softmax(-1)
        assert score.shape == (len(row) - 1,)
        np.testing.assert_allclose(score, full_TV[range(len(row) - 1), row[1:]].numpy(), atol=1e-5)


def test_a_row_to_score_ends_where_the_context_does_and_may_be_an_array() -> None:
    engine, (row,) = Engine(tiny()), prompts(65)  # 64 tokens are read, the last one is only predicted
    (whole,) = engine.logprobs([np.array(row, np.uint16)])
    (cut,) = engine.logprobs([row[:40]])
    assert whole.shape == (64,)
    np.testing.assert_allclose(whole[:39], cut, atol=1e-5)


def test_batches_keep_to_the_budget_and_have_few_shapes() -> None:
    rows = [[1] * length for length in [*range(1, 65), 500]]
    found = list(batches(rows, len, budget=320))
    assert sorted(len(row) for batch in found for row in batch) == [*range(1, 65), 500]
    shapes = [tuple(pad(batch, torch.device("cpu"))[0].shape) for batch in found]
    assert shapes == [(1, 512)] + [(5, 64)] * 4 + [(6, 48)] * 2 + [(10, 32)] * 2 + [(12, 16)]


def test_the_head_is_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny(), []
    whole = Engine(model).logprobs(MIXED)
    monkeypatch.setattr("behemoth.inference.engine.LOGITS_AT_ONCE", 10 * 64)
    monkeypatch.setattr("behemoth.inference.engine.FEWEST_AT_ONCE", 1)
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: seen.append(len(hidden)) or logits(hidden))
    for a, b in zip(Engine(model).logprobs(MIXED), whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(seen) == 10
    assert sum(seen) == sum(len(row) - 1 for row in MIXED)  # no padding reaches the head


def test_logprobs_of_an_answer_agree_with_scoring_it() -> None:
    engine = Engine(tiny())
    for prompt, answer in zip(MIXED, engine.generate(MIXED, max_tokens=15, temperature=1.3), strict=True):
        (score,) = engine.logprobs([prompt + answer.tokens])
        np.testing.assert_allclose(score[len(prompt) - 1 :], answer.logprobs, atol=1e-5)


def test_equal_prompts_are_read_once_and_answered_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny(), []
    engine, forward = Engine(model), model.forward
    group, seeds = [MIXED[4]] * 5 + [MIXED[1], MIXED[4]], [0, 1, 2, 3, 4, 0, 0]
    alone = [
        [token.id for token in engine.stream(prompt, max_tokens=8, temperature=1.0, seed=seed)]
        for prompt, seed in zip(group, seeds, strict=True)
    ]
    monkeypatch.setattr(model, "forward", lambda x, **k: read.append(tuple(x.shape)) or forward(x, **k))
    answers = engine.generate(group, max_tokens=8, temperature=1.0, seeds=seeds)
    assert read[:2] == [(2, 32), (7, 1)]
    assert [answer.tokens for answer in answers] == alone
    assert len({tuple(tokens) for tokens in alone}) == 6


def test_finished_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny(), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda tokens, **k: read.append(len(tokens)) or forward(tokens, **k)
    )
    Engine(model).generate(MIXED[:4], max_tokens=[1, 2, 3, 5])
    assert read == [4, 3, 2, 1, 1]


def test_generation_is_repeatable_and_seeds_matter() -> None:
    engine = Engine(tiny())
    once, again = (engine.generate(MIXED, max_tokens=10, temperature=1.0) for _ in range(2))
    other = engine.generate(MIXED, max_tokens=10, temperature=1.0, seeds=range(100, 108))
    assert once == again
    assert all(a.tokens != b.tokens for a, b in zip(once, other, strict=True))


def test_stop_tokens_end_an_answer_and_belong_to_it() -> None:
    engine = Engine(tiny())
    (free,) = engine.generate([MIXED[4]], max_tokens=12)
    stop = free.tokens[4]
    (stopped,) = engine.generate([MIXED[4]], max_tokens=12, stop_ids=(stop,))
    first = free.tokens.index(stop)
    assert stopped.tokens == free.tokens[: first + 1]
    assert (stopped.finish, free.finish) == ("stop", "length")


def test_the_context_ends_an_answer() -> None:
    engine = Engine(tiny(), max_context=24)
    short, full = engine.generate(prompts(20, 24), max_tokens=100)
    assert (len(short.tokens), short.finish) == (4, "length")
    assert (full.tokens, full.finish) == ([], "length")
    assert len(list(engine.stream(MIXED[4]))) == 4


def test_weights_are_read_anew_at_every_call() -> None:
    model = tiny(dtype=torch.bfloat16)
    engine = Engine(model)
    before = engine.generate(MIXED, max_tokens=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    assert engine.generate(MIXED, max_tokens=8) != before


@pytest.mark.parametrize("tied", [False, True])
def test_bf16_activations_with_fp32_weights(tied: bool) -> None:
    model = tiny(dtype=torch.bfloat16, tie_embeddings=tied, init_std=0.1)
    engine, cast = Engine(model), at_compute_precision(model)
    assert {weight.dtype for weight in cast.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert cast.frequencies.dtype == torch.float32
    assert (cast.lm_head.weight is cast.embed_tokens.weight) == tied
    with torch.no_grad():
        row = torch.tensor([MIXED[5]])
        torch.testing.assert_close(cast(row).hidden_BTD, model(row).hidden_BTD, atol=0, rtol=0)
    for prompt, answer in zip(MIXED, engine.generate(MIXED, max_tokens=12), strict=True):
        (score,) = engine.logprobs([prompt + answer.tokens])
        np.testing.assert_allclose(score[len(prompt) - 1 :], answer.logprobs, atol=0.1)


def test_a_model_of_one_precision_is_not_copied() -> None:
    model = tiny()
    assert at_compute_precision(model) is model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.generate([[1] * 65], max_tokens=1), "65 tokens and the context holds 64"),
        (lambda e: e.stream([1] * 65), "65 tokens and the context holds 64"),
        (lambda e: e.logprobs([[1], [1] * 66]), "66 tokens and the context holds 64"),
        (lambda e: e.generate([[1], []], max_tokens=1), "no tokens"),
        (lambda e: e.generate([[1, 64]], max_tokens=1), "token 64 is not among the model's 64"),
        (lambda e: e.logprobs([[1, -1]]), "token -1 is not among the model's 64"),
        (lambda e: e.generate([[1]], max_tokens=-1), "max_tokens = -1"),
        (lambda e: e.generate([[1]], max_tokens=[1, 2]), "max_tokens has 2 values for 1 prompts"),
        (lambda e: e.generate([[1]], max_tokens=1, seeds=[]), "seeds has 0 values for 1 prompts"),
        (lambda e: e.stream([1], temperature=-1), "temperature = -1"),
    ],
)
def test_wrong_use_is_told_at_the_call(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(Engine(tiny()))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_of_nan_are_reported(temperature: float) -> None:
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="weights hold nan"):
        Engine(model).generate([[1]], max_tokens=3, temperature=temperature)


def test_nothing_asked_is_nothing_done() -> None:
    model = SimpleNamespace(
        config=tiny().config, parameters=list, named_parameters=list, compute_dtype=torch.float32
    )
    engine = Engine(model)
    assert engine.generate([], max_tokens=3) == []
    assert engine.logprobs([]) == []
    assert engine.generate([[1]], max_tokens=0)[0].tokens == []
