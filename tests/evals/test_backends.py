"""What a backend answers: the same from our engine and from transformers, errors as values, every kind of MODEL."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, write_json
from behemoth.evals.backends import Failed, Generated, Likelihood, open_backend
from behemoth.evals.hf_backend import open_transformers
from behemoth.evals.lm_eval_adapter import how, run_lm_eval
from behemoth.evals.local import Local, Ours
from behemoth.export.hf import write_files
from behemoth.inference.engine import Engine
from behemoth.model.config import ModelConfig
from behemoth.model.open import open_model
from behemoth.model.transformer import Transformer
from behemoth.text.tokenizer import Tokenizer

TEXT = "He had two apples and three pears, so five fruits in all.\n\nQuestion: how many are 12 and 30?\nAnswer: 42\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 64 tokens of context, as an exported directory without a receipt."""
    directory = tmp_path_factory.mktemp("model") / "small"
    tokenizer = Tokenizer.train([TEXT], 384)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        dense_size=48,
        expert_size=24,
        num_experts=4,
        chunk_size=16,
        temperature_floor=16,
        context_length=64,
        init_std=0.3,
    )
    write_files(Transformer(config).initialise(torch.Generator().manual_seed(0)), tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def both(exported: Path) -> tuple[Local, Local]:
    ours, theirs = open_backend(exported), open_transformers(exported, bos=True)
    assert isinstance(ours, Local)
    assert (ours.kind, theirs.kind) == ("behemoth", "transformers")
    assert ours.sha256 == theirs.sha256 and ours.name == theirs.name == "small"
    return ours, theirs


PAIRS = [
    ("He had two", " apples"),
    ("He had two", " pears, and three"),
    ("He had two", " p"),
    ("Question: how many \n", "are 12"),
    ("", "He had three"),
    ("   ", "He"),
    ("apples and pears, " * 30, "so five"),
]


def test_likelihoods_of_the_engine_and_of_transformers(both: tuple[Local, Local]) -> None:
    a, b = (backend.likelihoods(PAIRS) for backend in both)
    for ours, theirs in zip(a, b, strict=True):
        assert isinstance(ours, Likelihood) and isinstance(theirs, Likelihood)
        assert abs(ours.logprob - theirs.logprob) < 1e-4
        assert (ours.greedy, ours.tokens, ours.truncated) == (theirs.greedy, theirs.tokens, theirs.truncated)
    assert [x.truncated for x in a if isinstance(x, Likelihood)] == [False] * 6 + [True]


def test_a_pair_is_encoded_as_one_text_and_cut_on_the_left(both: tuple[Local, Local]) -> None:
    reader = both[0].reader
    row = both[0].pair(("two apples  ", "and"))
    assert row.prompt == [*reader.opening, *reader.encode("two apples")]
    assert row.prompt[1:] + row.continuation == reader.encode("two apples  and")
    long = both[0].pair(("apples " * 200, "and pears"))
    assert len(long.prompt) + len(long.continuation) == 65 and long.truncated
    assert long.prompt == reader.encode("apples " * 199 + "apples")[-len(long.prompt) :]


def test_what_cannot_be_asked_fails_alone(both: tuple[Local, Local]) -> None:
    for backend in both:
        good, *bad = backend.likelihoods([("a", " b"), ("a", "\ud800"), ("a", ""), ("a", " b c" * 100)])
        assert isinstance(good, Likelihood)
        whys = [failed.why if isinstance(failed, Failed) else "" for failed in bad]
        assert "Unicode" in whys[0] and "no token of its own" in whys[1] and "the context holds 64" in whys[2]
        nats = backend.nats(["\ud800", "a b"])
        assert isinstance(nats[0], Failed) and isinstance(nats[1], float)
        written = backend.generate(["\ud800", "a"], 2, [])
        assert isinstance(written[0], Failed) and isinstance(written[1], Generated)


def test_a_model_of_nan_fails_and_does_not_score(exported: Path) -> None:
    backend = open_backend(exported)
    assert isinstance(backend, Local)
    backend.reader.engine.model.norm.weight.data[:] = math.nan  # type: ignore[attr-defined]
    answers = [*backend.likelihoods(PAIRS), *backend.nats(["a b c"]), *backend.generate(["a"], 4, [])]
    assert all(isinstance(answer, Failed) and "nan" in answer.why for answer in answers)


def test_one_answer_of_nan_fails_alone(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine refuses the batch; those beside it are answered as if they had been asked without it."""
    backend = open_backend(exported, device="cpu")
    assert isinstance(backend, Local)
    culprit = [*backend.reader.opening, *backend.reader.encode("three pears")]
    prompts = ["He had", "Question:", "three pears", "apples", "how many"]
    rest = [prompt for prompt in prompts if prompt != "three pears"]
    texts, want = backend.nats(rest), backend.generate(rest, 6, [])
    write, score = backend.reader.write, backend.reader.score

    def strict(ask):  # type: ignore[no-untyped-def]
        def asked(rows, *more):  # type: ignore[no-untyped-def]
            if any(row.prompt + row.continuation == culprit for row in rows):
                raise InputError("the logits are nan")
            return ask(rows, *more)

        return asked

    monkeypatch.setattr(backend.reader, "write", strict(write))
    monkeypatch.setattr(backend.reader, "score", strict(score))
    assert [a for a in backend.generate(prompts, 6, []) if not isinstance(a, Failed)] == want
    assert backend.generate(prompts, 6, [])[2] == Failed("the logits are nan")
    nats = backend.nats(prompts)
    assert nats[2] == Failed("the logits are nan")
    assert nats[:2] + nats[3:] == pytest.approx(texts, rel=1e-5)


def test_a_backend_says_in_which_precision_it_computes(exported: Path, gpt2: Path) -> None:
    """As the weights are stored, or as it is asked to: then it scores as a run's own models do in that precision."""
    stored, coarse = open_backend(exported, device="cpu"), open_backend(exported, "bf16", "cpu")
    assert [(b.precision, b.device, b.route) for b in (stored, coarse)] == [
        ("fp32", "cpu", ""),
        ("bf16", "cpu", ""),
    ]
    opened = open_model(exported)
    opened.model.compute_dtype = torch.bfloat16
    as_trained = Local(Ours(Engine(opened.model), Tokenizer.load(exported)), "", opened.sha256, "behemoth")
    assert as_trained.precision == "bf16" and as_trained.sha256 == coarse.sha256 == stored.sha256
    assert as_trained.likelihoods(PAIRS) == coarse.likelihoods(PAIRS) != stored.likelihoods(PAIRS)
    theirs = [open_backend(gpt2, precision, "cpu").precision for precision in (None, "bf16")]
    assert theirs == ["fp32", "bf16"]
    with pytest.raises(InputError, match="precision = 'int3'; it is one of fp32, bf16"):
        open_backend(exported, "int3")


def test_generation_of_both_stops_and_cuts_alike(both: tuple[Local, Local]) -> None:
    prompts = ["He had", "Question: how", "", "apples and pears, " * 30]
    free = both[0].generate(prompts, 12, [])
    texts = [answer.text for answer in free if isinstance(answer, Generated)]
    number, inside = next((n, c) for n, text in enumerate(texts) for c in text[1:] if c.isascii())
    stop = [inside, "", "never"]  # an empty string stops nothing
    for max_tokens, strings in [(12, []), (12, stop), (1000, stop), (0, [])]:
        a, b = (backend.generate(prompts, max_tokens, strings) for backend in both)
        assert a == b
        for answer in a:
            assert isinstance(answer, Generated) and not any(s and s in answer.text for s in strings)
    (found,) = both[0].generate([prompts[number]], 12, stop)
    assert isinstance(found, Generated) and found.finish == "stop"
    assert found.text == texts[number][: texts[number].index(inside)]


def test_a_prompt_gives_way_to_its_answer_but_keeps_half_the_context(both: tuple[Local, Local]) -> None:
    ours = both[0]
    assert [len(ours.prompt("apples " * 100, n).prompt) for n in (0, 10, 32, 40, 500)] == [64, 54, 32, 32, 32]
    short = ours.prompt("apples", 500)
    assert short.limit == 64 - len(short.prompt) and not short.truncated


def test_nats_of_a_text_are_the_sum_of_its_windows(both: tuple[Local, Local]) -> None:
    text = TEXT * 3
    ours, theirs = (backend.nats([text, "", "He"]) for backend in both)
    assert ours == pytest.approx(theirs, rel=1e-5) and ours[1] == 0
    engine, tokenizer = both[0].reader.engine, both[0].reader.tokenizer  # type: ignore[attr-defined]
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    windows = [ids[a : a + 65] for a in range(0, len(ids) - 1, 64)]
    assert ours[0] == pytest.approx(-sum(float(x.sum()) for x in engine.logprobs(windows)), rel=1e-6)


@pytest.fixture(scope="module")
def gpt2(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture: learned positions, nothing before a text, left padding for batches."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    directory = tmp_path_factory.mktemp("hf") / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_another_architecture_opens_through_transformers(gpt2: Path) -> None:
    backend = open_backend(gpt2, device="cpu")
    assert isinstance(backend, Local)
    assert (backend.kind, backend.name, backend.reader.context) == ("transformers", "gpt2", 48)
    assert len(backend.sha256) == 64 and backend.reader.opening == [] and len(backend.reader.first) == 1
    prompts = ["He had two apples", "Question:", "three pears, so five fruits"]
    together = backend.generate(prompts, 10, ["\n"])
    assert together == [backend.generate([prompt], 10, ["\n"])[0] for prompt in prompts]
    batched = backend.likelihoods(PAIRS)
    for pair, answer in zip(PAIRS, batched, strict=True):
        (alone,) = backend.likelihoods([pair])
        assert isinstance(answer, Likelihood) and isinstance(alone, Likelihood)
        assert abs(answer.logprob - alone.logprob) < 1e-4


def test_a_llama3_is_asked_through_transformers_until_it_is_ours(save_llama3, tmp_path: Path) -> None:
    """Somebody else's directory; one that we wrote, by its receipt or by its tokenizer's hash."""
    directory = save_llama3(tmp_path / "theirs")
    assert open_backend(directory).kind == "transformers"
    theirs = open_backend(directory).likelihoods([("the model", " reads the text")])
    config = read_json(directory / "config.json")
    write_json(directory / "config.json", config | {"behemoth": {}})
    assert open_backend(directory).kind == "behemoth"
    ours = open_backend(directory).likelihoods([("the model", " reads the text")])
    write_json(directory / "config.json", config)
    write_json(directory / "receipt.json", {"files": {}})
    assert open_backend(directory).kind == "behemoth"
    (a,), (b,) = ours, theirs
    assert isinstance(a, Likelihood) and isinstance(b, Likelihood)
    assert a.tokens == b.tokens and math.isclose(a.logprob, b.logprob, abs_tol=1e-4)


def test_another_architecture_scores_as_its_logits_say(gpt2: Path) -> None:
    backend = open_transformers(gpt2, bos=True)
    row = backend.pair(("He had two", " apples and"))
    model = backend.reader.model  # type: ignore[attr-defined]
    ids = torch.tensor([row.prompt + row.continuation])
    logprobs = model(ids).logits[0].log_softmax(-1)
    places = range(len(row.prompt) - 1, ids.shape[1] - 1)
    want = sum(logprobs[n, ids[0, n + 1]].item() for n in places)
    (found,) = backend.likelihoods([("He had two", " apples and")])
    assert isinstance(found, Likelihood) and found.logprob == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("spec", ["nothing", "nothing:member"])
def test_what_is_no_model_is_told_what_one_may_be(spec: str) -> None:
    with pytest.raises(InputError, match=r"no such file.*hf:ORG/NAME.*http"):
        open_backend(spec)


def test_broken_directories_are_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a model"):
        open_backend(tmp_path / "empty")
    write_json(tmp_path / "config.json", read_json(exported / "config.json") | {"model_type": "gpt2"})
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_backend(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="transformers cannot open it"):
        open_backend(tmp_path)


def test_a_hub_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"hf:some/model: .*no route to host.*name its directory"):
        open_backend("hf:some/model")


def test_a_hub_model_is_opened_from_where_it_was_put(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(exported))
    assert open_backend("hf:some/model").kind == "behemoth"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (256, ())),
        ({"until": "\n", "max_gen_toks": 5}, (5, ("\n",))),
        ({"until": ["a", "b"], "max_new_tokens": 7, "do_sample": False, "temperature": 0.0}, (7, ("a", "b"))),
    ],
)
def test_generation_settings_of_the_harness(options: dict, expected: tuple[int, tuple[str, ...]]) -> None:
    assert how(options) == expected


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=re.escape("pip install 'behemoth-lab[lm-eval]'")):
        run_lm_eval(None, ["piqa"])  # type: ignore[arg-type]


def test_a_task_that_samples_is_refused() -> None:
    with pytest.raises(InputError, match="evaluation here is greedy"):
        how({"do_sample": True, "temperature": 0.7})
