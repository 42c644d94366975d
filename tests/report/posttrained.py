"""The files of the stages after pretraining, written by hand with the numbers that small models give."""

import json

import numpy as np

EVIL = '</pre></td><script>alert(1)</script><b onclick="x">{prompt}'
TASK = "arithmetic"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def add_stages(run):
    """An SFT, an RL and a DPO stage and the exam over all of them, beside what pretraining left in `run`."""
    generator = np.random.default_rng(1)
    add_sft(run / "sft", generator)
    add_rl(run / "rl", generator)
    add_dpo(run / "dpo", generator)
    write(run / "evals" / "assistant.json", exam())
    return run


def exam():
    scores = {"base": 0.012, "sft": 0.438, "rl": 0.716, "dpo": 0.722}
    steps = [
        ("base", "sft", 0.426, 0.381, 0.469, "better"),
        ("sft", "rl", 0.278, 0.236, 0.32, "better"),
        ("rl", "dpo", 0.006, -0.018, 0.03, "cannot tell"),
    ]
    bits = {"base": 2.012, "sft": 2.049, "rl": 2.061, "dpo": 2.058}
    return {
        "exam": [TASK],
        "models": [
            {"name": name, "spec": f"runs/quickstart:{name}", "bits_per_byte": bits[name],
             "scores": {TASK: {"estimate": x, "low": max(x - 0.044, 0), "high": x + 0.044, "items": 500}}}
            for name, x in scores.items()
        ],
        "steps": [
            {"from": a, "to": b, "task": TASK, "difference": d, "low": low, "high": high, "verdict": verdict}
            for a, b, d, low, high, verdict in steps
        ],
        "held_out": [
            {"from": a, "to": b, "worse_percent": 100 * (bits[b] / bits[a] - 1)} for a, b, *_ in steps
        ],
    }  # fmt: skip


def metrics_line(step, name, members, seconds=0.42):
    common = {"grad_norm": 0.8, "rate": 0.002, "skipped": False, "load": [[0.125] * 8] * 4}
    return {"step": step, "tokens": 2048, "seconds": seconds, "tokens_per_second": 2048 / seconds,
            "peak_share": 0.21, "members": {name: members | common}}  # fmt: skip


def dev_line(step, name, score):
    return {"step": step, "member": name, "task": TASK, "ask": "generate", "score": score,
            "low": max(score - 0.09, 0), "high": min(score + 0.09, 1)}  # fmt: skip


def add_sft(stage, generator, steps=300):
    losses = 0.31 + 2.4 * np.exp(-np.arange(steps) / 40) + generator.normal(0, 0.04, steps)
    lines = [metrics_line(i + 1, "sft", {"loss": float(losses[i])}) for i in range(steps)]
    write_lines(stage / "metrics.jsonl", lines)
    write_lines(stage / "tasks.jsonl", [dev_line(i, "sft", 0.44 * i / (i + 60)) for i in range(0, 301, 50)])
    write_lines(
        stage / "heldout.jsonl",
        [{"step": i, "member": "sft", "bits_per_byte": 2.0 + 0.0002 * i} for i in range(50, 301, 50)],
    )
    write_lines(stage / "samples.jsonl", [
        {"step": i, "member": "sft", "prompt": "What is 17 + 25?", "text": said}
        for i, said in ((100, "17 17 17"), (300, "7 + 5 = 12, carry 1. The answer is 42."))
    ])  # fmt: skip
    write(stage / "data.json", {
        "kept": 11_486, "rejected": {"empty answer": 212, "longer than the context": 95, "unknown role": 3},
        "sources": {"code pairs": {"kept": 6_240, "rejected": 214},
                    "arithmetic": {"kept": 5_246, "rejected": {"longer than the context": 96}}},
    })  # fmt: skip


def add_rl(stage, generator, steps=180):
    lines, rollouts = [], []
    for i in range(1, steps + 1):
        right = 0.44 + 0.3 * (1 - np.exp(-i / 60)) + float(generator.normal(0, 0.04))
        seconds = {"sampling": 1.4, "grading": 0.03, "scoring": 0.22}
        objective = {"loss": -0.01, "entropy": 0.62 * np.exp(-i / 150), "drift": 0.0011}
        line = metrics_line(i, "rl", objective, seconds=2.31)
        finished = min(1.0, 0.91 + i / 1800)
        line["rollouts"] = {
            "reward": right + 0.1 * finished, "pass_rate": right, "finished": finished, "samples": 128,
            "parts": {"correct": right, "readable": 0.99, "finished": finished, "length": 0.0},
            "tasks": {TASK: right, "functions": right / 2}, "groups": 16, "groups_without_signal": int(4 + i / 40),
            "tokens": int(128 * (31 + 6 * np.sin(i / 30))), "version": i - 1, "seconds": seconds,
        }  # fmt: skip
        lines.append(line)
        rollouts += [answer_line(i, good) for good in (True, False)]
    write_lines(stage / "metrics.jsonl", lines)
    write_lines(stage / "rollouts.jsonl", rollouts)
    write_lines(stage / "tasks.jsonl", [dev_line(i, "rl", 0.44 + i / 650) for i in range(0, 181, 30)])
    write(stage / "outcome.json", {"best_step": 150, "best_score": 0.671, "stopped": None, "steps": steps})


def answer_line(step, good):
    """One of the two answers that a step leaves: the best of its group, and the worst."""
    task = (TASK, "functions")[step % 2]
    a, b = 17 + step % 30, 25 + step
    said = f"{a} + {b}: the ones give {(a + b) % 10}.\nThe answer is {a + b if good else a + b + 10}."
    question = f"What is {a} + {b}? Work step by step and end with the answer."
    if task == "functions":
        said = f"def add(x, y):\n    # {EVIL}\n    return x {'+' if good else '-'} y"
        question = f"Write a function that adds two numbers. {EVIL}"
    return {
        "step": step, "version": step - 1, "prompt_id": f"{task}/{step}", "task": task, "prompt": question,
        "text": said, "finish": "stop" if good else "length", "tokens": 24 + step % 7, "reward": 1.1 if good else 0.1,
        "parts": {"correct": float(good), "readable": 1.0, "finished": float(good), "length": 0.0},
        "advantage": 0.5 if good else -0.5,
    }  # fmt: skip


def add_dpo(stage, generator, steps=120):
    i = np.arange(1, steps + 1)
    noise = generator.normal(0, 0.02, steps)
    loss, accuracy, margin = (
        0.693 * np.exp(-i / 200) + noise,
        0.5 + 0.35 * (1 - np.exp(-i / 40)) + noise,
        i / 90,
    )
    chosen = margin / 2 - 0.3
    write_lines(stage / "metrics.jsonl", [
        metrics_line(int(step), "dpo", {"loss": float(x), "accuracy": float(y), "margin": float(z),
                                       "reward_chosen": float(c), "reward_rejected": float(c - z)})
        for step, x, y, z, c in zip(i, loss, accuracy, margin, chosen, strict=True)
    ])  # fmt: skip
    write_lines(stage / "tasks.jsonl", [dev_line(i, "dpo", 0.7) for i in (0, 60, 120)])
    write(stage / "data.json", {"kept": 940, "rejected": {"a tie": 51}, "sources": {}})
