"""What an answer is worth: a sum of named parts, each times its weight.

    correct    the task's own grade, 0 to 1
    readable   1 where the grader could read an answer out of it, right or wrong
    finished   1 where it ended by itself, before its limit
    length     the share of its limit that it used; meant for a negative weight

All parts are computed and reported, whatever their weight, so that a part which is gamed shows. Where the grader could
not decide there is no reward at all: such an answer is left out of its group, never counted as wrong. Left out: learned
reward models, and rewards for single steps of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from behemoth.base.config import nearest
from behemoth.base.errors import InputError
from behemoth.rl.rollouts import Prompt, Sample
from behemoth.tasks.task import before_stop, verdict

PARTS = ("correct", "readable", "finished", "length")


@dataclass(frozen=True)
class Reward:
    """`total` is None, and there are no parts, where the answer could not be scored; `why` then says why."""

    total: float | None
    parts: Mapping[str, float]
    why: str = ""


class Rewards:
    """weights: of the parts by name. threads: graders at once; those of programs wait for another process.

    InputError: there is no such part, or no weight but 0.
    """

    def __init__(self, weights: Mapping[str, float], threads: int = 4):
        for name in weights:
            if name not in PARTS:
                raise InputError(f"no part of a reward is called {name!r}{nearest(name, PARTS)}")
        if not any(weights.values()):
            raise InputError(f"every reward would be 0; give one of {', '.join(PARTS)} a weight")
        self.weights, self.threads = dict(weights), threads

    def __call__(self, answers: Sequence[tuple[Prompt, Sample]]) -> list[Reward]:
        """The reward of each answer, in their order."""
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.reward, *zip(*answers, strict=True))) if answers else []

    def reward(self, prompt: Prompt, sample: Sample) -> Reward:
        grade = verdict(prompt.task, prompt.item, before_stop(sample.text, prompt.task.stop))
        if grade.score is None:
            return Reward(None, {}, grade.why)
        parts = {
            "correct": float(grade.score),
            "readable": float(bool(grade.answer.strip())),
            "finished": float(sample.finish == "stop"),
            "length": len(sample.ids) / prompt.limit,
        }
        return Reward(sum(weight * parts[name] for name, weight in self.weights.items()), parts, grade.why)
