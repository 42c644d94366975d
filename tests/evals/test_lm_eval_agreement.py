"""Our tasks, runner and engine against lm-evaluation-harness with its own transformers backend, item by item.

The harness reads the files itself, with configurations written here after its own tasks. It is given an exported
directory; ours is the run it was exported from, the export, and the export through transformers. Whatever is
compared is compared for every item: who is right, each log-probability, each text.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from behemoth.evals.backends import Backend, open_backend
from behemoth.evals.hf_backend import open_transformers
from behemoth.evals.lm_eval_adapter import run_lm_eval
from behemoth.evals.runner import evaluate
from behemoth.export.hf import write_files
from behemoth.model.config import ModelConfig
from behemoth.model.open import open_model
from behemoth.model.transformer import Transformer
from behemoth.model.weights import save_weights
from behemoth.tasks.suite import load
from behemoth.text.tokenizer import Tokenizer

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is an extra: pip install 'behemoth-lab[lm-eval]'"
)

LM = dict[str, Any]
CHOICE = {"output_type": "multiple_choice", "doc_to_target": "gold", "doc_to_choice": "choices"}
ACC = {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
REGEXES = {"ignore_case": True, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}
GSM8K = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, **REGEXES}],
    "filter_list": [
        {
            "name": name,
            "filter": [
                {"function": "regex", "regex_pattern": pattern, **options},
                {"function": "take_first"},
            ],
        }
        for name, pattern, options in [
            ("strict", "#### (\\-?[0-9\\.\\,]+)", {}),
            ("flexible", "(-?[$0-9.,]{2,})|(-?[0-9]+)", {"group_select": -1}),
        ]
    ],
}
# ours: kind and file; theirs: a configuration over the same file
TASKS: dict[str, tuple[str, LM]] = {
    "arc": ("arc_easy.jsonl", {**CHOICE, **ACC, "doc_to_text": "{{query}}\nAnswer:"}),
    "boolq": ("boolq.jsonl.gz", {**CHOICE, **ACC, "doc_to_text": "{{query}}\nAnswer:"}),
    "piqa": ("piqa.jsonl", {**CHOICE, **ACC, "doc_to_text": "{{query}}Answer:"}),
    "blimp": (
        "blimp_half.jsonl.gz",
        {
            **CHOICE,
            **ACC,
            "doc_to_text": "",
            "doc_to_target": 0,
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        },
    ),
    "lambada": (
        "lambada_openai.jsonl.gz",
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + continuation}}",
            "metric_list": [{"metric": "acc"}],
        },
    ),
    "gsm8k": ("gsm8k_test.jsonl", GSM8K),
}
PARADIGM = "anaphor_gender_agreement"
MAX_TOKENS = 48


def a_run(directory: Path, texts: list[str], context: int) -> Path:
    """A run directory with a sparse model of random weights, large enough to have opinions."""
    tokenizer = Tokenizer.train(texts, 1024)
    tokenizer.save(directory / "tokenizer")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_size=16,
        dense_size=96,
        expert_size=64,
        num_experts=4,
        chunk_size=32,
        temperature_floor=32,
        context_length=context,
        init_std=0.15,
    )
    model = Transformer(config).initialise(torch.Generator().manual_seed(0))
    save_weights(model, directory / "weights", tokenizer_sha256=tokenizer.sha256)
    return directory / "weights"


def cut_files(source: Path | None, directory: Path, items: int | None) -> dict[str, Path]:
    """The first rows of each file, of one paradigm of BLiMP; rows made up on the spot without a source."""
    files = {}
    for name, (file, _) in TASKS.items():
        if source is None:
            rows = [made_up(name, number) for number in range(items or 6)]
        else:
            data = (source / "eval" / file).read_bytes()
            lines = (gzip.decompress(data) if file.endswith(".gz") else data).decode().split("\n")
            rows = [json.loads(line) for line in lines if line]
            rows = [row for row in rows if row.get("UID", PARADIGM) == PARADIGM][:items]
        files[name] = directory / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def made_up(name: str, number: int) -> dict[str, Any]:
    a, b = number + 2, 3 * number + 5
    match name:
        case "arc":
            choices = [f"{a + b}", f"{a} apples", "none of the pears that he had", "two"]
            return {
                "query": f"Question: {a} apples and {b} pears are how many?",
                "choices": choices,
                "gold": 0,
            }
        case "boolq":
            query = f"Passage: {'He has ' * a}{b} pears.\nQuestion: are there {b} pears?"
            return {"query": query, "choices": ["no", "yes"], "gold": 1}
        case "piqa":
            choices = [f"Take {a} apples out.", f"Take all {b} pears away, and put {a} apples in."]
            return {"query": f"Question: empty basket {number}\n", "choices": choices, "gold": number % 2}
        case "blimp":
            good, bad = f"The {a} cats see themselves.", f"The {a} cats see itself."
            return {"sentence_good": good, "sentence_bad": bad, "UID": PARADIGM, "pairID": str(number)}
        case "lambada":
            return {"context": f"He had {a} apples and ate {b} pears, then all his", "continuation": "apples"}
        case _:
            return {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}


def ours(backend: Backend, files: dict[str, Path], out: Path, name: str) -> dict[str, list[LM]]:
    tables = [f'[[tasks]]\nkind = "{kind}"\npath = "{path}"\n' for kind, path in files.items()]
    suite = out / "agreement.toml"
    suite.write_text('name = "agreement"\n\n' + "\n".join(tables) + f"max_tokens = {MAX_TOKENS}\n")
    found = evaluate(backend, name, load(suite), out, name=name)
    return {task: result.records for task, result in found.tasks.items()}


def configurations(files: dict[str, Path], cache: Path) -> list[LM]:
    generation = {
        "until": ["Question:", "</s>", "<|im_end|>"],
        "max_gen_toks": MAX_TOKENS,
        "do_sample": False,
    }
    return [
        {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(files[name])}, "cache_dir": str(cache)},
            "test_split": "test",
            **config,
            **({"generation_kwargs": generation} if config["output_type"] == "generate_until" else {}),
        }
        for name, (_, config) in TASKS.items()
    ]


def theirs(export: Path, configs: list[LM]) -> dict[str, list[LM]]:
    """The harness, its own transformers backend on the exported directory: samples by task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(export, add_bos_token=True)
    # one row at a time: what transformers writes with chunked attention depends on the padding to a row's left
    harness = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=True, batch_size=1, device="cpu")
    manager = TaskManager(include_defaults=False)
    return simple_evaluate(harness, tasks=configs, task_manager=manager, bootstrap_iters=0)["samples"]


def compare(records: dict[str, list[LM]], samples: dict[str, list[LM]]) -> dict[str, str]:
    """Every item of every task: the same score, the same text, log-probabilities within 1e-3. Told by task.

    A token whose two best experts are level to seven digits may go to the other one elsewhere, and its log-probability
    then differs by thousandths (docs/log.md, 2026-11-22): one in a hundred may, by less than a tenth.
    """
    told = {}
    for task, (_, config) in TASKS.items():
        scores = {}
        for sample in samples[task]:
            scores[sample["doc_id"], sample.get("filter", "none")] = sample
        apart = []
        assert len(records[task]) == len({doc for doc, _ in scores}) > 0
        for number, record in enumerate(records[task]):
            assert not record["error"]
            if config["output_type"] == "generate_until":
                for name in ("strict", "flexible"):
                    sample = scores[number, name]
                    assert record["output"] == sample["resps"][0][0]
                    assert record["metrics"][name] == sample["exact_match"]
                continue
            sample = scores[number, "none"]
            assert record["metrics"]["accuracy"] == sample["acc"]
            if config["output_type"] == "multiple_choice":
                assert record["metrics"]["accuracy_norm"] == sample["acc_norm"]
                pairs = zip(record["logprobs"], [logprob for ((logprob, _),) in sample["resps"]], strict=True)
            else:
                pairs = zip([record["metrics"]["logprob"]], [sample["resps"][0][0][0]], strict=True)
            apart += [abs(a - b) for a, b in pairs]
        assert max(apart, default=0) < 0.1 and sum(gap > 1e-3 for gap in apart) <= len(apart) / 100, task
        right = sum(record["score"] for record in records[task])
        told[task] = (
            f"{len(records[task])} items, {right:g} right, log-probabilities within {max(apart, default=0):.1e}"
        )
    return told


def agree(run: str, export: Path, files: dict[str, Path], directory: Path) -> None:
    """The run, its export, and its export through transformers; and the harness on our engine."""
    configs = configurations(files, directory / "cache")
    samples = theirs(export, configs)
    backends = [open_backend(run), open_backend(export), open_transformers(export, bos=True)]
    assert [backend.kind for backend in backends] == ["behemoth", "behemoth", "transformers"]
    for number, backend in enumerate(backends):
        told = compare(ours(backend, files, directory, str(number)), samples)
        print(f"\n{backend.kind}: {told}")
    adapted = run_lm_eval(backends[0], configs)
    assert not adapted["failures"]
    for task in TASKS:
        for a, b in zip(adapted["samples"][task], samples[task], strict=True):
            assert a["doc_id"] == b["doc_id"]
            assert {k: a[k] for k in ("acc", "exact_match") if k in a} == {
                k: b[k] for k in ("acc", "exact_match") if k in b
            }


def random_model(directory: Path, texts: list[str]) -> tuple[str, Path]:
    weights = a_run(directory / "run", texts, context=256)
    opened = open_model(weights)
    write_files(opened.model, Tokenizer.load(opened.tokenizer_directory), directory / "export")
    return str(weights), directory / "export"


def texts_of(files: dict[str, Path]) -> list[str]:
    return [file.read_text() for file in files.values()]


def test_a_random_model_on_made_up_items(tmp_path: Path) -> None:
    files = cut_files(None, tmp_path, 4)
    agree(*random_model(tmp_path, texts_of(files)), files, tmp_path)


def test_a_random_model_on_a_few_real_items(tmp_path: Path, data_directory: Path) -> None:
    files = cut_files(data_directory, tmp_path, 4)
    agree(*random_model(tmp_path, texts_of(files)), files, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_trained_model_on_real_items(tmp_path: Path, data_directory: Path) -> None:
    """BEHEMOTH_RUN names a run with an export/teacher; without, a small one is trained (minutes)."""
    run = Path(os.environ.get("BEHEMOTH_RUN", tmp_path / "run"))
    if not run.exists():
        recipe = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
        command = [sys.executable, "-m", "behemoth", "run", str(recipe), "--out", str(run)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    items = int(os.environ.get("BEHEMOTH_ITEMS", 1000))
    agree(str(run), run / "export" / "teacher", cut_files(data_directory, tmp_path, items), tmp_path)
