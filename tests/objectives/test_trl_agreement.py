"""TRL's trainers on the same model and the same batch: the same loss, and the same gradient of every parameter.

The model is drawn and saved by transformers and read by us; both compute in fp32, so what remains is rounding: a
relative 1e-5 of a loss, and 2e-5 of the largest gradient of a parameter. TRL adds a router loss that the
model's configuration names; it is set to 0, as is our balancing term.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Llama4ForCausalLM, Llama4TextConfig, PreTrainedTokenizerFast

from behemoth.data.batch import Batch, Pairs, padded
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.model.weights import config_to_hf, hf_name, load_weights
from behemoth.objectives.logprobs import answer_logprobs
from behemoth.objectives.loss import Loss
from behemoth.objectives.next_token import next_token
from behemoth.objectives.preference import dpo

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

BETA = 0.7
ANSWERS = [
    (3, 9),
    (12, 2),
    (1, 6),
    (7, 4),
]  # tokens of the preferred answer, and of the rejected one; eos included
EOS = 1


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL reports its use to the Hub otherwise
    datasets.disable_progress_bars()


@pytest.fixture
def config(tiny_config: ModelConfig) -> ModelConfig:
    return tiny_config.model_copy(update={"experts_per_token": 2, "chunk_size": 8, "temperature_floor": 8})


def saved(config: ModelConfig, directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    Llama4ForCausalLM(Llama4TextConfig(**config_to_hf(config))).save_pretrained(directory)
    return directory


def theirs(directory: Path) -> Llama4ForCausalLM:
    model = Llama4ForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    model.base_model_prefix = (
        "model"  # transformers gives the text model that of the multimodal one; TRL goes by it
    )
    return model


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Token 17 is written <17>, so that every sequence of ids is a text."""
    bare = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(vocab_size)}, unk_token="<0>"))
    bare.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\d+>"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<0>", eos_token=f"<{EOS}>")


def text(ids: list[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def examples() -> list[tuple[list[int], list[int], list[int]]]:
    """Prompts with a preferred and a rejected answer; some cross a chunk border."""
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(2, 96) for _ in range(length)]

    return [(ids(5), [*ids(a - 1), EOS], [*ids(b - 1), EOS]) for a, b in ANSWERS]


def in_trl(kind: str, model: Any, rows: list[dict[str, str]], folder: Path, **settings: Any) -> Tensor:
    """The loss that TRL's trainer of that kind computes of all rows, with gradients left in the model."""
    more = {"ref_model": settings.pop("reference")} if "reference" in settings else {}
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        router_aux_loss_coef=0.0,
        per_device_train_batch_size=len(rows),
        **settings,
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(96),
        **more,
    )
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()
    return loss.detach()


def agree(ours: Transformer, loss: Loss, weight: float, model: Any, their_loss: Tensor) -> None:
    (loss.total / weight).backward()
    torch.testing.assert_close((loss.total / weight).detach(), their_loss, rtol=1e-5, atol=0)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in ours.named_parameters():
        found, meant = parameter.grad, gradients.pop(hf_name(name, ours.config))
        assert found is not None and meant.abs().max() > 0, name
        torch.testing.assert_close(found, meant, rtol=0, atol=2e-5 * float(meant.abs().max()), msg=name)
    assert not gradients


def test_fine_tuning_on_answers_is_theirs(config: ModelConfig, tmp_path: Path) -> None:
    directory = saved(config, tmp_path / "model", 0)
    ours, model = load_weights(directory), theirs(directory)
    pairs = [(prompt, answer) for prompt, answer, _ in examples()]
    rows = [{"prompt": text(prompt), "completion": text(answer)} for prompt, answer in pairs]
    their_loss = in_trl("SFT", model, rows, tmp_path / "trl", completion_only_loss=True)
    batch = as_batch(pairs, Batch)
    agree(ours, next_token(ours, batch, balance=0.0), batch.weight, model, their_loss)


@pytest.mark.parametrize(("per_token", "name"), [(False, "sigmoid"), (True, "sigmoid_norm")])
def test_preference_optimisation_is_theirs(
    config: ModelConfig, tmp_path: Path, per_token: bool, name: str
) -> None:
    directory, before = saved(config, tmp_path / "model", 0), saved(config, tmp_path / "reference", 1)
    ours, model = load_weights(directory), theirs(directory)
    rows = [{"prompt": text(p), "chosen": text(a), "rejected": text(b)} for p, a, b in examples()]
    settings = {"loss_type": [name], "beta": BETA, "reference": theirs(before)}
    their_loss = in_trl("DPO", model, rows, tmp_path / "trl", **settings)
    batch = as_batch(
        [(p, answer) for p, *both in examples() for answer in both], Pairs, reference_B=torch.zeros(8)
    )
    with torch.no_grad():
        batch = replace(batch, reference_B=answer_logprobs(load_weights(before), batch).sum(1))
    loss = dpo(ours, batch, beta=BETA, per_token=per_token, nll=0.0, balance=0.0)
    agree(ours, loss, batch.weight, model, their_loss)


def as_batch(rows: list[tuple[list[int], list[int]]], kind: Callable[..., Any], **more: Tensor) -> Any:
    tensors = padded([p + a for p, a in rows], [[0] * len(p) + [1] * len(a) for p, a in rows])
    weight = len(rows) / 2 if kind is Pairs else float(tensors[2].sum())
    return kind(*tensors, None, weight, **more)
