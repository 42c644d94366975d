"""The quickstart's models and a small transformers model on five task files, and the page that compares them."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from behemoth.base.files import read_json
from behemoth.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
STEPS = 300


def behemoth(*words):
    subprocess.run(
        [sys.executable, "-m", "behemoth", *map(str, words)], check=True, stderr=subprocess.DEVNULL
    )


def a_transformers_model(data: Path, directory: Path) -> Path:
    """A Llama of 3M parameters, trained for some minutes on children's books, as transformers trains."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with gzip.open(data / "pretrain" / "books_childrens.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"][:1_000_000] for line in file]
    tokenizer = Tokenizer.train(texts, 4096)
    tokenizer.save(directory)
    ids = torch.tensor([i for text in texts for i in (tokenizer.bos_id, *tokenizer.encode(text))])
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - 256, (8,))
        rows = torch.stack([ids[start : start + 256] for start in starts.tolist()])
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    return directory


@pytest.mark.campaign
def test_the_quickstarts_models_beside_a_transformers_model(data_directory, tmp_path):
    """BEHEMOTH_RUN names a finished quickstart; without, one is run. The pages lie in BEHEMOTH_OUT, if given."""
    run, out = (
        Path(os.environ.get("BEHEMOTH_RUN", tmp_path / "run")),
        Path(os.environ.get("BEHEMOTH_OUT", tmp_path)),
    )
    if not run.exists():
        behemoth("run", ROOT / "recipes" / "quickstart.toml", "--out", run)
    rival = a_transformers_model(data_directory, tmp_path / "small-llama")
    suite = ("--suite", ROOT / "recipes" / "suites" / "small.toml", "--out", out / "five")
    for member in (run, f"{run}:student"):
        behemoth("compare", member, rival, *suite)
    pages = sorted((out / "five").glob("compare-*.html"))
    found = [read_json(path) for path in sorted((out / "five").glob("*/evaluation.json"))]
    assert len(pages) == 2 and len(found) == 3
    for evaluation in found:
        print(
            evaluation["model"]["name"], {name: task["score"] for name, task in evaluation["tasks"].items()}
        )
        assert len(evaluation["tasks"]) == 5
        assert all(task["scored"] == task["items"] for task in evaluation["tasks"].values())
