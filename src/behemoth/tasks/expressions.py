"""Are two pieces of mathematics equal? Asked of math-verify, in a process of its own.

math-verify (Kydlíček 2025) reads LaTeX into sympy and compares symbolically. What a model writes may keep sympy
busy for hours (9^{9^9}), its own time limit is a signal that works in the main thread only and does not stop a
single long multiplication, and it talks on the terminal. So it lives in a child process: asked line by line,
from any thread, killed when it takes too long, limited in memory, silent. Starting it costs seconds, once; plain
numbers never come here. Only LaTeX is read: the other reader of math-verify hands its text to Python.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import select
import subprocess
import sys
import threading
from typing import Literal

Verdict = Literal[
    "equal", "different", "no reference", "no answer", "no verdict", "too long", "not installed"
]

SECONDS = 5.0  # for one comparison; most take a hundredth
START_SECONDS = 60.0  # for importing sympy on a busy machine
MEMORY = 2 << 30
LONGEST = 300  # characters of an expression worth reading


def compare(reference: str, answer: str, seconds: float = SECONDS) -> Verdict:
    """Whether `answer` equals `reference`, or why that was not found out. Safe to call from any thread."""
    if not 0 < len(reference) <= LONGEST:
        return "no reference"
    if not 0 < len(answer) <= LONGEST:
        return "no answer"
    return _worker(os.getpid()).ask(reference, answer, seconds)


@functools.cache
def _worker(process_id: int) -> Worker:
    """One per process: a fork would share the pipes of its parent."""
    worker = Worker()
    atexit.register(worker.stop)
    return worker


class Worker:
    """A child that compares, started when first asked and again after it had to be killed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: subprocess.Popen[str] | None = None

    def ask(self, reference: str, answer: str, seconds: float) -> Verdict:
        with self.lock:
            if self.child is None or self.child.poll() is not None:
                self.child = _start()
                if self._line(START_SECONDS) is None:
                    self.stop()
                    return "no verdict"
            assert self.child.stdin
            try:
                self.child.stdin.write(json.dumps([reference, answer]) + "\n")
                self.child.stdin.flush()
                line = self._line(seconds)
            except BrokenPipeError:
                line = ""
            if line:
                verdict: Verdict = json.loads(line)
                return verdict
            self.stop()
            return "too long" if line is None else "no verdict"  # "" is a child that died, of memory mostly

    def _line(self, seconds: float) -> str | None:
        assert self.child and self.child.stdout
        ready, _, _ = select.select([self.child.stdout], [], [], seconds)
        return self.child.stdout.readline() if ready else None

    def stop(self) -> None:
        if self.child:
            self.child.kill()
            self.child.communicate()
            self.child = None


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "behemoth.tasks.expressions"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )


def _answer_questions() -> None:
    """The child: a pair per line in, a verdict per line out. Whatever else is printed goes nowhere."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    logging.disable()
    _limit_memory()
    try:
        import math_verify  # noqa: F401
    except ImportError:
        read = False
    else:
        read = True
    out.write("ready\n")
    for line in sys.stdin:
        reference, answer = json.loads(line)
        verdict = _verdict(reference, answer) if read else "not installed"
        out.write(json.dumps(verdict) + "\n")


def _verdict(reference: str, answer: str) -> Verdict:
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list:
        latex = "$" + text.replace("$", "") + "$"
        config = [LatexExtractionConfig()]
        return parse(latex, config, fallback_mode="no_fallback", parsing_timeout=None)

    try:
        if not (gold := read(reference)):
            return "no reference"
        if not (mine := read(answer)):
            return "no answer"
        equal = verify(gold, mine, timeout_seconds=None, raise_on_error=True)
    except Exception:  # whatever sympy stumbles over, the question stays open
        return "no verdict"
    return "equal" if equal else "different"


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on this system; the time limit still holds
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    _answer_questions()
