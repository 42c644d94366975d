"""A recipe of seconds with every stage of post-training, its folder, and copies of its run to go on with."""

import json
import shutil
from pathlib import Path

from small_recipes import MODEL

RECIPE = (
    MODEL
    + """chunk_size = 32
init_std = 0.1
[train]
tokens = 4096
context_length = 64
tokens_per_step = 512
precision = "fp32"
[evaluation]
suite = "none"
[assistant]
dev_items = 20
[[assistant.practice]]
kind = "arithmetic"
digits = [1]
items = 60
steps = false
[[assistant.exam]]
kind = "arithmetic"
digits = [1, 2]
items = 40
steps = false
[sft]
steps = 6
rows_per_step = 4
microbatches = 2
max_grad_norm = 0.5
adam_learning_rate = 0.02
replay = 0.25
hard = 0.9
[[sft.conversations]]
kind = "practice"
[rl]
steps = 4
prompts_per_step = 4
samples = 4
max_tokens = 4
evaluate_every = 2
microbatches = 2
temperature = 0.9
clip = "one-sided"
clip_low = 0.3
clip_high = 0.4
kl = 0.05
weight_decay = 0.1
stop_after_fall = 0.6
[rl.rewards]
correct = 1.0
length = -0.1
[dpo]
pairs_per_step = 4
epochs = 2
beta = 0.2
per_token = true
nll = 0.05
balance = 0.02
warmup = 0.2
decay = 0.3
[[dpo.pairs]]
kind = "graded"
prompts = 30
samples = 4
[[dpo.pairs]]
kind = "rows"
path = "pairs.jsonl"
"""
)
TRAINED = ("data", "pretrain", "sft", "rl", "dpo")


def write_folder(folder):
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "text").mkdir()
    for number in range(70):
        lines = [f"{i} + {number} = {i + number}" for i in range(30)]
        (folder / "text" / f"{number:03}.txt").write_text("\n".join(lines))
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": f"no {n}"} for n in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "x"}]))


def without(run: Path, copy: Path, *stages: str) -> Path:
    """A copy of a run, beside it, as it was before these stages: the same recipe goes on with it."""
    shutil.copytree(run, copy, ignore=lambda folder, _: stages if Path(folder) == run else ())
    record = json.loads((copy / "stages.json").read_text())
    kept = {name: facts for name, facts in record.items() if name not in stages}
    (copy / "stages.json").write_text(json.dumps(kept))
    return copy
