"""What a run tells: one aligned line a step for people, one JSON object a step for programs.

The line goes to stderr, the objects to `metrics.jsonl`; TensorBoard gets the same numbers when it is installed.
None of this can stop a run: what a full disk does not take is lost, and said to be.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from behemoth.base.files import append_jsonl, read_jsonl, write_atomic
from behemoth.base.logs import say
from behemoth.base.units import human_count, human_duration
from behemoth.stats.intervals import Interval
from behemoth.train.loop import Member, Step, Update

FILES = ("metrics.jsonl", "heldout.jsonl", "samples.jsonl", "tasks.jsonl", "rollouts.jsonl")
HEADER_EVERY = 50


class Monitor:
    """Writes the reports of one run into `directory`.

    flops: what one step of each member costs, by name; peak_flops: the machine's measured matrix-product rate. Without
    them every step is taken to cost the same, and no share of the peak is told.
    Records of steps after `start` were written by a process that died before it saved; they are cut off, and at the
    very beginning also what it found before the first step.
    """

    def __init__(
        self,
        directory: Path,
        members: Sequence[Member],
        steps: int,
        start: int,
        flops: dict[str, float] | None = None,
        peak_flops: float = math.inf,
    ):
        self.directory, self.members, self.steps = directory, members, steps
        self.flops = flops or {member.name: 1.0 for member in members}
        self.peak_flops = peak_flops
        self.lines, self.lost, self.seconds, self.flops_done = 0, 0, 0.0, 0.0
        for name in FILES:
            cut(directory / name, start or -1)
        self.board = tensorboard(directory, start)

    def step(self, step: Step, **facts: Any) -> None:
        """facts: what else there is to say of the step, for its line in the file."""
        flops = sum(self.flops[name] for name in step.updates)
        self.seconds += step.seconds
        self.flops_done += flops
        rate, share = step.tokens / step.seconds, flops / step.seconds / self.peak_flops
        record = {
            "step": step.step,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 4),
            "tokens_per_second": round(rate, 1),
            "peak_share": round(share, 4),
            "members": {name: describe(update) for name, update in step.updates.items()},
            **facts,
        }
        curves = {"tokens_per_second": rate}
        for name, update in step.updates.items():
            numbers = update.metrics | {"grad_norm": update.grad_norm}
            curves |= {f"{name}/{key}": value for key, value in numbers.items()}
        self.write("metrics.jsonl", record, curves)
        with suppress(OSError):  # whoever reads the terminal may be gone
            self.print_line(step, rate, share)

    def held_out(self, step: int, member: str, bits_per_byte: float) -> None:
        record = {"step": step, "member": member, "bits_per_byte": bits_per_byte}
        self.write("heldout.jsonl", record, {f"{member}/held_out_bits_per_byte": bits_per_byte})

    def sample(self, step: int, member: str, prompt: str, text: str) -> None:
        self.write("samples.jsonl", {"step": step, "member": member, "prompt": prompt, "text": text}, {})

    def rollouts(self, transcripts: Iterable[dict[str, Any]]) -> None:
        """Answers that the policy wrote, one line each."""
        for record in transcripts:
            self.write("rollouts.jsonl", record, {})

    def task(self, step: int, member: str, task: str, ask: str, score: Interval) -> None:
        """ask: how the task is asked, which says what its score is: of texts bits per byte, of the others a share."""
        record = {"step": step, "member": member, "task": task, "ask": ask, "score": score.estimate}
        record |= {"low": score.low, "high": score.high}
        self.write("tasks.jsonl", record, {f"{member}/{task}": score.estimate})

    def write(self, name: str, record: dict[str, Any], curves: dict[str, float]) -> None:
        """Add a line to a file, and a point to each of TensorBoard's curves. A disk that refuses is told of once."""
        try:
            append_jsonl(self.directory / name, plain(record))
            for curve, value in curves.items() if self.board is not None else ():
                self.board.add_scalar(curve, value, record["step"])
        except OSError as error:
            self.lost += 1
            self.board = None  # it writes in a thread, whose errors nobody can catch
            if self.lost == 1:
                say(f"{name}: {error.strerror}; training goes on, and what cannot be written of it is lost")

    def close(self) -> None:
        if self.lost:
            say(f"{self.lost} records of {', '.join(FILES)} or TensorBoard were lost")
        if self.board is not None:
            with suppress(OSError):
                self.board.close()

    def seconds_left(self, done: int) -> float:
        """From the arithmetic still to do, for students join late and cost extra."""
        to_do = sum(self.flops[m.name] * max(0, m.joins + m.steps - max(done, m.joins)) for m in self.members)
        return self.seconds / self.flops_done * to_do

    def print_line(self, step: Step, rate: float, share: float) -> None:
        names = [member.name for member in self.members]
        if self.lines % HEADER_EVERY == 0:
            losses = "".join(f"{name[-15:]:>16}" for name in names)
            print(f"{'step':>11}{losses}{'grad norm':>11}{'tokens/s':>10}{'peak':>6}  left", file=sys.stderr)
        self.lines += 1
        losses = "".join(f"{loss_of(step.updates.get(name)):>16}" for name in names)
        norm = next(iter(step.updates.values())).grad_norm if step.updates else float("nan")
        where = f"{step.step}/{self.steps}"
        left = human_duration(self.seconds_left(step.step))
        print(
            f"{where:>11}{losses}{norm:>11.2f}{human_count(rate):>10}{share:>6.0%}  {left}",
            file=sys.stderr,
            flush=True,
        )


def loss_of(update: Update | None) -> str:
    if update is None:
        return ""
    return f"{update.metrics['loss']:.4f}" + (" skip" if update.skipped else "")


def describe(update: Update) -> dict[str, Any]:
    metrics = {name: round(value, 5) for name, value in update.metrics.items()}
    return metrics | {
        "grad_norm": round(update.grad_norm, 4),
        "rate": round(update.rate, 5),
        "skipped": update.skipped,
        "load": [[round(share, 4) for share in layer] for layer in update.load_LE],
    }


def plain(value: Any) -> Any:
    """null where a number is not finite: JSON has no word for it, and other programs' readers stop there."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: plain(part) for key, part in value.items()}
        case list():
            return [plain(part) for part in value]
    return value


def cut(path: Path, last_step: int) -> None:
    """Keep the records up to `last_step`, and drop a torn last line."""
    if path.exists():
        kept = [record for record in read_jsonl(path) if record["step"] <= last_step]
        write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def tensorboard(directory: Path, start: int) -> Any:
    """A SummaryWriter that goes on after step `start`, or None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(directory / "tensorboard", purge_step=start + 1)
