"""Which prompts to ask next: those that the policy sometimes gets right, the harder ones of them first.

Llama 4's announcement: a light first round, then online learning on prompts kept at "medium to hard", scored again as
the policy improves. Here a prompt's chance of being drawn grows with p (1 - p)^2, where p is its expected pass rate:
p (1 - p) is the variance of a right-or-wrong reward, which is what a group can teach (arXiv 2502.12272), and the other
(1 - p) is how much is left to learn. It is greatest at p = 1/3, and never below `RARELY` of that, so a prompt that was
always right or always wrong is visited now and then, and scored again.

What was seen of a prompt is forgotten by half every `half_life` steps, since it was another policy that did it; the
expectation then moves to the mean of its capability, which is where that of an unseen prompt is. A batch is shared
among capabilities (tasks) by their weights, exactly over time; a prompt comes at most once in a batch.

The draw is a pure function of (seed, step, state), and the state is JSON. Left out: learning how prompts relate, so one
says nothing of another but through their capability's mean, which is that of the prompts that were drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.mixing import mix, mix_keys
from behemoth.rl.rollouts import Prompt

RARELY = 0.02  # the least chance of a prompt, as a share of the best one's
UNKNOWN = 0.5  # the pass rate expected of a capability that nobody was asked about
PRIOR = 1.0  # answers that the capability's mean counts for in a prompt's expectation
GAP = 1e-9  # rounding of shares that are meant to be whole


class Curriculum:
    """Prompts by capability, and what is known of each.

    size: prompts of a step. weights: of capabilities, by task name; equal when None. half_life: in steps.
    InputError: an unknown capability, one without weight, one with too few prompts for its share, or two prompts of
    one id.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        size: int,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        half_life: float = 50.0,
    ):
        self.seed, self.half_life = seed, half_life
        self.prompts: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            self.prompts.setdefault(prompt.task.name, []).append(prompt)
        self.place = {prompt.id: i for group in self.prompts.values() for i, prompt in enumerate(group)}
        if len(self.place) < len(prompts) or not prompts:
            raise InputError(
                f"{len(prompts)} prompts with {len(self.place)} ids; give one or more, each its own id"
            )
        weights = dict.fromkeys(self.prompts, 1.0) if weights is None else weights
        if weights.keys() != self.prompts.keys() or min(weights.values()) <= 0:
            raise InputError(
                f"weights of {', '.join(weights)} for the capabilities {', '.join(self.prompts)}: "
                "give each of them one, above 0"
            )
        shares = size * np.array([weights[task] for task in self.prompts]) / sum(weights.values())
        self.borders = np.array([0, *shares.cumsum()])
        for (task, group), share in zip(self.prompts.items(), shares.tolist(), strict=True):
            if len(group) < share - GAP:
                raise InputError(
                    f"{task} has {len(group)} prompts, and its share of a step is {share:.3g}; ask fewer"
                )
        # of each prompt: right answers, answers (both decayed to the step of the last), and that step
        self.right, self.asked, self.last = (
            {task: np.zeros(len(group)) for task, group in self.prompts.items()} for _ in range(3)
        )

    def draw(self, step: int) -> list[Prompt]:
        """The prompts of a step, by capability."""
        (start,) = uniform(
            mix_keys(self.seed, 0, step), 1
        )  # where the borders of shares fall between prompts
        counts = np.diff(np.floor(self.borders + start)).astype(int).tolist()
        chosen = []
        for number, (task, count) in enumerate(zip(self.prompts, counts, strict=True), 1):
            # the largest u^(1/w) are a draw without replacement by weight (Efraimidis and Spirakis 2006)
            numbers = uniform(mix_keys(self.seed, number, step), len(self.prompts[task]))
            keys = np.log(numbers) / appeal(self.expected(task, step))
            chosen += [self.prompts[task][i] for i in np.argsort(-keys, kind="stable")[:count]]
        return chosen

    def expected(self, task: str, step: int) -> np.ndarray:
        """The pass rate expected of each prompt of a capability."""
        kept = 0.5 ** ((step - self.last[task]) / self.half_life)
        right, asked = self.right[task] * kept, self.asked[task] * kept
        mean = (right.sum() + PRIOR * UNKNOWN) / (asked.sum() + PRIOR)
        return (right + PRIOR * mean) / (asked + PRIOR)

    def tell(self, step: int, prompt: Prompt, correct: Sequence[float]) -> None:
        """How the answers to a prompt were graded, 0 to 1 each, at `step`."""
        if not correct:
            return
        task, i = prompt.task.name, self.place[prompt.id]
        kept = 0.5 ** ((step - self.last[task][i]) / self.half_life)
        self.right[task][i] = self.right[task][i] * kept + sum(correct)
        self.asked[task][i] = self.asked[task][i] * kept + len(correct)
        self.last[task][i] = step

    def state(self) -> dict[str, Any]:
        """What is known of the prompts that were asked: by id, (right, asked, step)."""
        return {
            prompt.id: [float(table[task][i]) for table in (self.right, self.asked, self.last)]
            for task, group in self.prompts.items()
            for i, prompt in enumerate(group)
            if self.asked[task][i]
        }

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take the place of a curriculum of the same prompts. InputError: it knew others."""
        if unknown := state.keys() - self.place.keys():
            raise InputError(
                f"the saved state knows {len(unknown)} prompts that this run has not, as {min(unknown)}; "
                "go on with the tasks that the run began with"
            )
        for task, group in self.prompts.items():
            for i, prompt in enumerate(group):
                known = state.get(prompt.id, (0.0, 0.0, 0.0))
                self.right[task][i], self.asked[task][i], self.last[task][i] = known


def appeal(rates: np.ndarray) -> np.ndarray:
    """How much a prompt of this expected pass rate is wanted: 1 at 1/3, and RARELY at 0 and 1."""
    return np.maximum(RARELY, 27 / 4 * rates * (1 - rates) ** 2)


def uniform(key: int, count: int) -> np.ndarray:
    """`count` numbers in (0, 1) that depend on the key alone, whatever the version of any library."""
    bits = mix(np.arange(count, dtype=np.uint64) + np.uint64(key)) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53
