import json
import math
import struct

import numpy as np
import pytest

HOSTILE = (
    '</pre><script>alert(1)</script><img src="https://example.org/x" onerror=alert(2)>&amp;\x00\x1b[31m\ud800'
)
MEMBERS = (
    ("teacher", 0, 1.9),
    ("student", 1, 2.25),
    ("control", 1, 2.45),
)  # name, joins in which half, floor
CODE = '''self, name, value=None):
        """Return the value of the given name, or None if
        the name is not in the cache."""
        if name not in self._names:
            return'''


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def write_lines(path, lines):
    write(path, "".join(json.dumps(line) + "\n" for line in lines))


def loss(tokens, floor, noise):
    return floor + 5.1 * (1 + tokens / 9000) ** -0.62 + noise


@pytest.fixture
def fake_run(tmp_path):
    """The files of a finished run with a teacher, a student and its control, as large as a quickstart's."""
    return make_run(tmp_path / "quickstart")


def make_run(run, steps=400, tokens=2048):
    generator = np.random.default_rng(0)
    drift = generator.normal(0, 1, (4, 8))
    metrics, held_out, samples = [], [], []
    for step in range(1, steps + 1):
        members = {}
        for name, start, floor in (
            ("teacher", 0, 1.9),
            ("student", steps // 2, 2.25),
            ("control", steps // 2, 2.45),
        ):
            if step <= start:
                continue
            seen = (step - start) * tokens
            spread = drift[:, :] * 0.9 * math.exp(-seen / 150_000) + generator.normal(0, 0.1, (4, 8))
            load = np.exp(spread) / np.exp(spread).sum(1, keepdims=True)
            members[name] = {
                "loss": loss(seen, floor, float(generator.normal(0, 0.09))),
                "grad_norm": 1.0, "learning_rate": 0.01, "skipped": name == "control" and step == 333, "balance": 1.01,
                "load": load.round(4).tolist(),
            }  # fmt: skip
            if step % 40 == 0:
                bits = loss(seen, floor, 0) / math.log(2) / 2.4
                low, high = bits - 0.06, bits + 0.07
                line = {"step": step, "member": name, "bits_per_byte": bits, "low": low, "high": high}
                held_out.append(line)
            if step % 200 == 0:
                texts = {200: " the the self, = = (x\n    return self self.name(", 400: CODE}
                samples.append({"step": step, "member": name, "prompt": "def get(", "text": texts[step]})
        speed = (5400 if step <= steps // 2 else 3300) * float(generator.normal(1, 0.03))
        metrics.append({
            "step": step, "tokens": tokens, "seconds": tokens / speed, "tokens_per_second": speed,
            "peak_share": 0.31, "members": members,
        })  # fmt: skip
    samples.append({"step": steps, "member": "student", "prompt": "import ", "text": HOSTILE})
    write_lines(run / "pretrain" / "metrics.jsonl", metrics)
    write_lines(run / "pretrain" / "heldout.jsonl", held_out)
    write_lines(run / "pretrain" / "samples.jsonl", samples)
    write(run / "evals" / "results.json", results())
    write(run / "evals" / "experts.json", {name: expert_layers(generator) for name in ("teacher", "student")})
    for name, right in (("teacher", 0.41), ("student", 0.33), ("control", 0.31)):
        write(run / "evals" / "tasks" / name / "evaluation.json", evaluation(name, right))
    write_lines(run / "pretrain" / "tasks.jsonl", [
        {"step": step, "member": name, "task": "next_passage", "score": right, "low": right - 0.1,
         "high": right + 0.1}
        for step in (100, 200, 300, 400) for name, right in (("teacher", 0.25 + step / 2500), ("student", 0.3))
    ])  # fmt: skip
    write(run / "compare-student-control.html", "<!doctype html>")
    write(run / "doctor.json", {"examined": [{"name": "teacher", "seconds": 4.2, "findings": [
        finding("experts differ", 0.97, "ok"), finding("end of text", None, "not checked"),
    ]}]})  # fmt: skip
    write(run / "stages.json", {
        name: {"seconds": seconds, "finished": f"2026-03-01T12:0{i}:00+00:00"}
        for i, (name, seconds) in enumerate(
            {"data": 21.4, "pretrain": 186.0, "evaluate": 24.9, "export": 11.2, "report": 0.4}.items()
        )
    })  # fmt: skip
    write(run / "recipe.toml", RECIPE)
    write(run / "record.json", {
        "commit": "3f1c9e0", "hardware": {"cpu": "2 cores, AVX-512", "memory": "8 GB"},
        "versions": {"python": "3.12.3", "torch": "2.12.0", "behemoth": "0.1.0"}, "seed": 0,
        "intent": {"name": "quickstart"},
    })  # fmt: skip
    write(run / "data" / "report.json", {
        "sources": {"python": {
            "documents": {"in": 884, "kept": 846, "dropped": {"near duplicate": 30, "not UTF-8": 8}},
            "licences": {"PSF-2.0": 846}, "train": {"tokens": 3_512_400}, "held_out": {"documents": 84},
        }},
        "notes": ["near duplicates of held-out documents were dropped from the training text"],
    })  # fmt: skip
    for name, width in (("teacher", 64), ("student", 32), ("control", 32)):
        write_weights(run / "pretrain" / "checkpoints" / "step-00000400" / "weights" / name, width)
    return run


def evaluation(name, right):
    passage = {
        "metric": "accuracy_norm", "ask": "choice", "items": 300, "scored": 298, "unscored": 2, "errors": 0,
        "score": right, "low": right - 0.05, "high": right + 0.05, "chance": 0.25,
    }  # fmt: skip
    text = {
        "metric": "bits_per_byte", "ask": "text", "items": 84, "scored": 84, "unscored": 0, "errors": 0,
        "score": 2.012, "low": 1.957, "high": 2.067, "chance": None,
        "contamination": {"stages": ["pretrain"], "groups": {
            "all": group(84, 2.012, 1.957, 2.067), "clean": group(51, 2.044, 1.981, 2.107), "dirty": group(6, 0.587),
        }},
    }  # fmt: skip
    return {"model": {"name": name}, "suite": "starter", "tasks": {"next_passage": passage, "held_out": text}}


def group(items, score, low=None, high=None):
    note = "" if low else f"cannot tell: {items} documents are too few, 30 at least"
    return {"items": items, "scored": items, "score": score, "low": low, "high": high, "note": note}


def finding(check, number, verdict):
    return {
        "check": check, "looked_at": "4 layers of 8 experts", "number": number, "limit": 0.1, "verdict": verdict,
        "meaning": "what that means", "todo": "what to do",
    }  # fmt: skip


def results():
    rows = [
        ("xz, all held-out text at once", "reference", 1.731, None, "may copy from the other documents"),
        ("teacher", "model", 2.012, 0.055, ""),
        ("token 3-gram, whole corpus", "reference", 2.104, 0.061, "saw 4.3 times the tokens"),
        ("student", "model", 2.203, 0.058, "learned from the teacher's average"),
        ("token 3-gram", "baseline", 2.338, 0.064, "the tokens the models saw"),
        ("control", "model", 2.356, 0.06, "the same student without a teacher"),
        ("byte 5-gram", "baseline", 2.702, 0.07, "the bytes the models saw"),
    ]
    models = [
        {"name": name, "kind": kind, "bits_per_byte": bits, "documents": 84, "note": note,
         "low": half and bits - half, "high": half and bits + half}
        for name, kind, bits, half, note in rows
    ]  # fmt: skip
    sentences = [
        "teacher is better than token 3-gram by 0.326 bits per byte (95% interval 0.301 to 0.352)",
        "student is better than control by 0.153 bits per byte (95% interval 0.141 to 0.166)",
        "cannot tell control and token 3-gram apart: -0.018 bits per byte (95% interval -0.051 to +0.014)",
    ]
    comparisons = [
        {"a": "a", "b": "b", "difference": 0, "low": 0, "high": 0, "level": 0.95, "sentence": sentence}
        for sentence in sentences
    ]
    together = "these pairs are read together (Holm)"
    return {"unit": "bits per byte", "models": models, "comparisons": comparisons, "family": together}


def expert_layers(generator):
    words = [
        "def",
        " self",
        "(",
        "):\n",
        "    ",
        " return",
        ".",
        " import",
        "__",
        " the",
        '"',
        " if",
        "=",
        " None",
    ]
    words += [" True", "0", "1", " #", "\n\n", " raise", "Error", " str", "[", "]", " in", " not", ",", "'"]
    return [
        {"layer": layer, "experts": [
            {"expert": e, "share": share, "tokens": [
                [words[int(i)], round(float(generator.uniform(0.3, 1)), 3), int(generator.integers(20, 3000))]
                for i in generator.permutation(len(words))[:10]
            ]}
            for e, share in enumerate(generator.dirichlet(np.full(8, 40.0)).tolist())
        ]}
        for layer in range(4)
    ]  # fmt: skip


def write_weights(directory, width):
    write(directory / "config.json", {
        "num_hidden_layers": 4, "hidden_size": width, "num_local_experts": 8, "num_experts_per_tok": 1,
    })  # fmt: skip
    shapes = {
        "embed_tokens.weight": [2048, width],
        "layers.0.feed_forward.experts.down_proj": [8, 4 * width, width],
    }
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())


RECIPE = """# Complete: a value that was derived is followed by the reason, and may be changed like any other.
name = "quickstart"
seed = 0

[tokenizer]
vocab_size = 2048

[model]
hidden_size = 256  # derived: the width whose parameters come nearest to 4.0M
num_layers = 4  # derived: one no-position layer in four
num_experts = 8

[train]
tokens = 819200
tokens_per_step = 2048  # derived: small batches learn most per token on a CPU
learning_rate = 0.01  # derived: falls with the square root of the width

[[students]]
name = "student"
joins_at = 0.5
soft = 0.7
"""
