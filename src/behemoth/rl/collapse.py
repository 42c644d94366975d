"""When to stop, and which step to keep: who learns from their own answers can unlearn.

`Watch` smooths what each batch reports, and stops at the first of three faults that has lasted for `patience` steps:
the reward has lost a share of its best; answers have grown several times longer, and most do not end; answers no longer
differ, and too many are wrong, so that there is nothing to learn from. Long answers that end, and answers that are
alike and right, are no fault.

The reward that is watched is that of prompts chosen by a curriculum, which get harder as the policy gets better: hence
the generous share. Which step is kept is decided by `Best`, on questions that stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NEW = 0.1  # the share of the newest batch in what is smoothed: a memory of ten steps
SETTLED = 10  # steps before anything is judged
LEAST = 0.1  # a best reward nearer to 0 counts as this far from it: a fall from nothing is noise
ENDING = 0.5  # share of the answers that end by themselves; below it, long ones are runaway
SOLVED = 0.9  # pass rate above which answers may all be alike


class Watch:
    """fall: the share of its best that the smoothed reward may lose. growth: of the answers' length, as a factor.
    entropy: nats a token, under which answers no longer differ. patience: steps in a row."""

    def __init__(self, fall: float = 0.5, growth: float = 4.0, entropy: float = 1e-3, patience: int = 20):
        self.fall, self.growth, self.entropy, self.patience = fall, growth, entropy, patience
        self.known: dict[str, float] = {"steps": 0}

    def update(self, facts: Mapping[str, Any]) -> str | None:
        """Take the facts of one batch (`PolicySource.facts`): why to stop, or None."""
        new = {name: facts[name] for name in ("reward", "pass_rate", "finished", "entropy")}
        new["length"] = facts["tokens"] / facts["samples"]
        known = self.known
        known["steps"] += 1
        gain = max(NEW, 1 / known["steps"])  # a plain mean of the first steps, lest the very first weigh most
        for name, value in new.items():
            if value is not None and math.isfinite(value):
                known[name] = (1 - gain) * known.get(name, value) + gain * value
        if known["steps"] < SETTLED:
            return None
        known["best"] = max(known["reward"], known.get("best", known["reward"]))
        known.setdefault("first_length", known["length"])
        for fault, why in self.faults().items():
            known[fault] = known.get(fault, 0) + 1 if why else 0
            if known[fault] >= self.patience:
                return f"{why}, for {self.patience} steps"
        return None

    def faults(self) -> dict[str, str]:
        """What is wrong now, "" for nothing."""
        now = self.known
        best, length, entropy = now["best"], now["first_length"], now.get("entropy", float("inf"))
        fell = best - now["reward"] > self.fall * max(abs(best), LEAST)
        ran_away = now["length"] > self.growth * length and now["finished"] < ENDING
        froze = entropy < self.entropy and now["pass_rate"] < SOLVED
        return {
            "fell": f"the reward fell to {now['reward']:.3g} from its best of {best:.3g}" * fell,
            "ran_away": f"answers grew from {length:.0f} tokens to {now['length']:.0f}, "
            f"and {now['finished']:.0%} of them end" * ran_away,
            "froze": f"answers no longer differ ({entropy:.1g} nats a token), "
            f"and {now['pass_rate']:.0%} are right" * froze,
        }

    def state(self) -> dict[str, float]:
        """For a checkpoint, as JSON."""
        return dict(self.known)

    def restore(self, state: Mapping[str, float]) -> None:
        self.known = dict(state)


@dataclass
class Best:
    """The step whose score on the same questions was best; the last of equals. No score before any."""

    step: int = 0
    score: float | None = None

    def update(self, step: int, score: float) -> bool:
        """Whether this one is the best so far."""
        if better := self.score is None or score >= self.score:
            self.step, self.score = step, score
        return better
