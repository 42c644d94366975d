"""Preference pairs from graders: of several answers to a prompt, the best against the worst.

Two samples, the better one wins; of more, the extremes. A tie teaches nothing and is left out, and so is an answer that
was cut off at its limit: as the preferred one it would teach to stop there. What is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from behemoth.data.preferences import Pair
from behemoth.rl.rewards import Rewards
from behemoth.rl.rollouts import Prompt, Sampler


def graded_pairs(
    sampler: Sampler, prompts: Sequence[Prompt], n: int, rewards: Rewards, seed: int, version: int = 0
) -> tuple[list[Pair], Counter[str]]:
    """A pair for each prompt where one of n answers is better than another; and how many prompts gave "pair", "tie",
    "unfinished" (the best was cut off), or "unscored" (fewer than two answers could be scored)."""
    pairs, counts = [], Counter[str]()
    answers = sampler.sample(prompts, n, seed, version)
    given = iter(
        rewards([(p, sample) for p, samples in zip(prompts, answers, strict=True) for sample in samples])
    )
    for prompt, samples in zip(prompts, answers, strict=True):
        scored = [(r.total, s) for s in samples if (r := next(given)).total is not None]
        scored.sort(key=lambda both: both[0])
        if len(scored) < 2:
            counts["unscored"] += 1
            continue
        (low, worst), (high, best) = scored[0], scored[-1]
        if high == low or best.text.strip() == worst.text.strip():
            counts["tie"] += 1
        elif best.finish != "stop":
            counts["unfinished"] += 1
        else:
            counts["pair"] += 1
            source, licence = f"graded {prompt.task.name}", prompt.task.licence
            pairs.append(Pair(prompt.id, prompt.messages, best.text, worst.text, source, licence))
    return pairs, counts
