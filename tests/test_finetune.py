"""Open weights made your own, as the recipe does it: a directory of transformers', tuned and aligned with adapters on
the command line, interrupted on the way; what comes out is held against transformers and PEFT."""

import io
import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from behemoth import cli, posttrain
from behemoth.base.files import read_json, read_jsonl
from behemoth.export import hf, imports
from behemoth.export.receipt import answer
from behemoth.model.open import open_model
from behemoth.text.tokenizer import Tokenizer

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune-open-weights.toml"
TINY = (
    "train.context_length=128",
    "assistant.dev_items=4",
    "sft.steps=5",
    "dpo.steps=2",
    "dpo.pairs_per_step=4",
)


def call(*words: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    assert end.value.code == code


def save_llama4(directory: Path) -> Path:
    """A tiny Llama 4 as transformers draws and saves it."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    tokenizer = Tokenizer.train(["user assistant\n\nthe model reads the text of 1981 and 2026"] * 9, 320)
    torch.manual_seed(0)
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_hidden_layers": 4, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    sizes |= {"intermediate_size_mlp": 64, "num_local_experts": 4, "interleave_moe_layer_step": 2}
    sizes |= {"attention_chunk_size": 64, "max_position_embeddings": 128}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = Llama4TextConfig(
        **sizes, initializer_range=0.15, rope_parameters=rope, bos_token_id=0, eos_token_id=[1]
    )
    Llama4ForCausalLM(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


def write_folder(folder: Path) -> Path:
    """The recipe with a smaller exam, beside the two files that it wants: Alpaca's layout, and HH-RLHF's."""
    recipe = folder / "recipe.toml"
    recipe.write_text(
        RECIPE.read_text().replace("items = 500", "items = 12").replace("rank = 16", "rank = 4")
    )
    talks = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(40)]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    asked = [f"\n\nHuman: Is it {n}?\n\nAssistant:" for n in range(12)]
    pairs = [{"chosen": f"{question} Yes.", "rejected": f"{question} No, no."} for question in asked]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return recipe


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(tokens)
        return found.logits if hasattr(found, "logits") else model.logits(found.hidden_BTD)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama4", "llama3"])
def test_a_directory_of_transformers_tuned_aligned_and_handed_back(
    family, save_llama3, tmp_path, monkeypatch, capsys
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    theirs = {"llama4": save_llama4, "llama3": save_llama3}[family](tmp_path / "theirs")
    run = tmp_path / "run"
    for module in (hf, imports):  # transformers in this process; the export's own tests use fresh ones
        monkeypatch.setattr(
            module, "question", lambda places: [hf._receipt(answer(place), {}) for place in places]
        )
    command = ["run", write_folder(tmp_path), "--out", run, "--no-doctor", "--set", f"model.path={theirs}"]
    command += [word for setting in TINY for word in ("--set", setting)]

    step_of = posttrain.Monitor.step

    def interrupted(monitor, report, **facts):
        step_of(monitor, report, **facts)
        if report.step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(posttrain.Monitor, "step", interrupted)
        call(*command, code=130)
    assert open_model(f"{run}:sft").step == 3
    call(*command)
    assert [line["step"] for line in read_jsonl(run / "sft" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "from base to assistant" in capsys.readouterr().out and (run / "report.html").exists()

    tokens = torch.randint(0, 250, (2, 48), generator=torch.Generator().manual_seed(0))
    for stage in ("sft", "dpo"):
        ours = logits(open_model(f"{run}:{stage}").model, tokens)
        adapter = run / stage / "adapter"
        named = read_json(adapter / "adapter_config.json")["base_model_name_or_path"]
        base = AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32)
        before = logits(base, tokens)
        wrapped = PeftModel.from_pretrained(base, str(adapter)).eval()
        moved = (logits(wrapped, tokens) - before).abs().max()
        torch.testing.assert_close(logits(wrapped, tokens), ours, atol=float(moved) / 100, rtol=0)
        assert torch.equal(logits(wrapped.unload(), tokens), before)
    exported = AutoModelForCausalLM.from_pretrained(run / "export" / "dpo", dtype=torch.float32)
    torch.testing.assert_close(logits(exported, tokens), ours, atol=2e-5, rtol=0)

    monkeypatch.setattr(sys, "stdin", io.StringIO("Say 7.\n"))
    call("chat", run)
    assert "has not been post-trained" not in capsys.readouterr().out
