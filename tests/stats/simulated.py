"""Whether the intervals and verdicts hold what they promise: many draws of worlds in which the truth is known.

`python tests/stats/simulated.py [draws]` prints the table of docs/statistics.md, with 10,000 draws each; the tests
beside it ask for the same with bounds. The formulas that are tried are those of behemoth.stats, along the last axis.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from behemoth.stats import intervals, paired, power, samples, seeds
from behemoth.stats.agreement import cohen_kappa

LEVEL = 0.95
CELLS = 4_000_000  # of an array held at once


@dataclass(frozen=True)
class Draws:
    """Sums by cluster of two models, (draws, clusters), and what is true of them."""

    a: np.ndarray
    b: np.ndarray
    sizes: np.ndarray
    gains: np.ndarray  # (draws,), nan where answers are not right or wrong
    losses: np.ndarray


@dataclass(frozen=True)
class World:
    """draw(generator, draws) -> Draws. score, ahead: the true score of `a`, and by how much it is ahead of `b`."""

    name: str
    draw: Callable[[np.random.Generator, int], Draws]
    score: float
    ahead: float
    width: int  # cells per draw, so that a block fits in memory


@dataclass(frozen=True)
class Seen:
    """Shares of all draws. false: a better model named though there is none, or the wrong one."""

    score_held: float
    difference_held: float
    named: float
    false: float
    decided: float  # draws with enough clusters, items and differing answers for a verdict
    p_values: np.ndarray


def blocks(world: World, draws: int, seed: int = 0) -> Iterator[Draws]:
    generator, rows = np.random.default_rng(seed), max(1, CELLS // world.width)
    for start in range(0, draws, rows):
        yield world.draw(generator, min(rows, draws - start))


def see(world: World, draws: int, seed: int = 0) -> Seen:
    score, difference, named, wrong, decided, p_values = [], [], [], [], [], []
    for drawn in blocks(world, draws, seed):
        binary = not np.isnan(drawn.gains).any()
        if binary:
            _, low, high = intervals.share_ends(drawn.a, drawn.sizes, LEVEL)
        else:
            low, high = intervals.clustered(drawn.a, drawn.sizes).ends(LEVEL)
        score.append((low <= world.score) & (world.score <= high))
        ends = paired.paired_test(drawn.a - drawn.b, drawn.sizes, drawn.gains, drawn.losses, LEVEL)
        estimate, low, high, p = ends
        difference.append((low <= world.ahead + 1e-12) & (world.ahead - 1e-12 <= high))
        enough = intervals.effective_clusters(drawn.sizes) >= paired.MIN_CLUSTERS
        if binary:
            enough &= drawn.sizes.sum(-1) >= paired.MIN_ITEMS
            enough &= drawn.gains + drawn.losses >= paired.MIN_DIFFERING
        decided.append(enough)
        named.append(enough & (p < 1 - LEVEL))
        wrong.append(named[-1] & (np.sign(estimate) != np.sign(world.ahead)))
        p_values.append(np.where(enough, p, 1.0))
    shares = [float(np.concatenate(part).mean()) for part in (score, difference, named, wrong, decided)]
    return Seen(*shares, np.concatenate(p_values))


# ---------------------------------------------------------------------------------------------- worlds


def answers(
    name: str,
    score: float,
    ahead: float,
    clusters: int,
    size: int | None = 1,
    *,
    passage: float = 0.0,
    item: float = 1.0,
    own: float = 0.5,
) -> World:
    """Right-or-wrong answers: a threshold on the sum of what is hard about the passage (half as much again by model),
    about the item, and of each model's own luck, all normal with these variances. size None: 1 to 20, geometric."""
    spread = math.sqrt(1.25 * passage + item + own)
    thresholds = special.ndtri([score, score - ahead]) * spread
    most = size or 20

    def draw(generator: np.random.Generator, draws: int) -> Draws:
        shape = (draws, clusters)
        sizes = np.full(shape, size) if size else generator.geometric(0.25, shape).clip(1, most)
        common = math.sqrt(passage) * generator.normal(size=shape)
        special_to = [math.sqrt(passage / 4) * generator.normal(size=shape) for _ in range(2)]
        right, gains, losses = np.zeros((2, *shape)), np.zeros(draws), np.zeros(draws)
        for i in range(most):
            there = sizes > i
            hard = common + math.sqrt(item) * generator.normal(size=shape)
            a, b = (
                (hard + special_to[model] + math.sqrt(own) * generator.normal(size=shape) < thresholds[model])
                & there
                for model in range(2)
            )
            right += a, b
            gains += (a & ~b).sum(-1)
            losses += (b & ~a).sum(-1)
        return Draws(right[0], right[1], sizes.astype(float), gains, losses)

    return World(name, draw, score, ahead, 10 * clusters)


def texts(
    name: str, documents: int, tail: str, ahead: float = 0.0, spread: float = 0.1, capped: bool = True
) -> World:
    """Bits of documents of very unequal size (log-normal; capped as the quickstart's are, so that 60 are worth about
    42), harder where they are short. The models differ by `ahead` bits per byte and a part with this tail."""

    def sizes_of(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        sizes = np.exp(generator.normal(8.6, 1.0 if capped else 0.8, shape)).round() + 1
        return np.minimum(sizes, 12_000) if capped else sizes

    def draw(generator: np.random.Generator, draws: int) -> Draws:
        shape = (draws, documents)
        sizes = sizes_of(generator, shape)
        rate = 2 + 0.35 * generator.normal(size=shape) - 0.1 * (np.log(sizes) - 8.6)
        match tail:
            case "normal":
                luck = generator.normal(size=shape)
            case "heavy":
                luck = generator.standard_t(3, shape) / math.sqrt(3)
            case _:
                luck = generator.exponential(size=shape) - 1
        nan = np.full(draws, math.nan)
        return Draws(rate * sizes, (rate - ahead + spread * luck) * sizes, sizes, nan, nan)

    sizes = sizes_of(np.random.default_rng(1), (2_000_000,))
    score = 2 - 0.1 * float((sizes * (np.log(sizes) - 8.6)).sum() / sizes.sum())
    return World(name, draw, score, ahead, 8 * documents)


def marks(name: str, items: int, ahead: float = 0.0) -> World:
    """Marks of 0, 1/4 ... 1, as of partly right answers: the share of four parts that are right."""

    def draw(generator: np.random.Generator, draws: int) -> Draws:
        shape = (draws, items)
        easy = generator.beta(4, 2, shape) * 0.9 + 0.1
        a, b = (generator.binomial(4, easy - behind) / 4 for behind in (0.0, ahead))
        nan = np.full(draws, math.nan)
        return Draws(a, b, np.ones(shape), nan, nan)

    return World(name, draw, 4 / 6 * 0.9 + 0.1, ahead, 6 * items)


WORLDS: list[Callable[[], World]] = [
    *(
        (lambda p=p, n=n: answers(f"answers, {n} items, score {p}", p, 0.0, n))
        for n in (100, 300, 1000)
        for p in (0.1, 0.5, 0.9)
    ),
    lambda: answers("answers, 300 items, 0.9, 5 points ahead", 0.9, 0.05, 300),
    lambda: answers("answers, 100 items, 0.9, 2% differ", 0.9, 0.0, 100, own=0.01),
    lambda: answers("answers, 1,000 items, 0.9, 2% differ", 0.9, 0.0, 1000, own=0.01),
    *(
        (
            lambda p=p, n=n: answers(
                f"answers, {n} passages of 5, score {p}", p, 0.0, n, 5, passage=0.5, item=0.5
            )
        )
        for n in (30, 100)
        for p in (0.1, 0.5, 0.9)
    ),
    *(
        (
            lambda p=p: answers(
                f"answers, 60 passages of 1 to 20, score {p}", p, 0.0, 60, None, passage=0.5, item=0.5
            )
        )
        for p in (0.1, 0.5, 0.9)
    ),
    lambda: answers("answers, 60 passages of 5, 5 points ahead", 0.5, 0.05, 60, 5, passage=0.5, item=0.5),
    *(
        (lambda n=n, tail=tail: texts(f"bits per byte, {n} documents, {tail}", n, tail))
        for n in (45, 60, 200)
        for tail in ("normal", "heavy", "skewed")
    ),
    lambda: texts("bits per byte, 60 documents not capped, heavy", 60, "heavy", capped=False),
    lambda: texts("bits per byte, 200 documents not capped, heavy", 200, "heavy", capped=False),
    lambda: texts("bits per byte, 60 documents, heavy, 0.05 ahead", 60, "heavy", ahead=0.05),
    lambda: marks("marks, 100 items", 100),
    lambda: marks("marks, 300 items, 5 points ahead", 300, ahead=0.05),
]


# ---------------------------------------------------------------------------------------------- families and power


def families(draws: int, seed: int = 0) -> dict[str, float]:
    """Shares of families of 20 tasks without any true difference in which Holm names a better model somewhere."""
    kinds: dict[str, Callable[[int], World]] = {
        "answers, 100 to 1,050 items": lambda i: answers("", 0.1 + 0.04 * i, 0.0, 100 + 50 * i),
        "answers, 40 to 97 passages of 5": lambda i: answers(
            "", 0.1 + 0.04 * i, 0.0, 40 + 3 * i, 5, passage=0.5, item=0.5
        ),
        "bits per byte, 60 documents, heavy": lambda i: texts("", 60, "heavy"),
    }
    found = {}
    for name, kind in kinds.items():
        p_values = np.stack([see(kind(i), draws, seed + i).p_values for i in range(20)], -1)
        adjusted, _ = paired.holm(p_values, LEVEL)
        found[name] = float((adjusted < 1 - LEVEL).any(-1).mean())
    return found


def planned_answers(score: float, ahead: float, own: float, draws: int) -> tuple[str, int, float]:
    """Name, items that the power function asks for, and the share of draws in which they find the difference."""
    trial = next(blocks(answers("", score, ahead, 100_000, own=own), 20))
    differing = float((trial.gains + trial.losses).sum() / trial.sizes.sum())
    items = power.items_needed(ahead, differing=differing)
    seen = see(answers("", score, ahead, items, own=own), draws)
    return f"answers, {differing:.1%} differ, {100 * ahead:g} points", items, seen.named


def planned_passages(score: float, ahead: float, draws: int) -> tuple[str, int, float]:
    trial = next(blocks(answers("", score, ahead, 40_000, 5, passage=0.5, item=0.5), 20))
    items = trial.sizes.sum(-1)
    differing = float((trial.gains + trial.losses).sum() / items.sum())
    gap = intervals.clustered(trial.a - trial.b, trial.sizes)
    design = float(intervals.design_effect(gap, differing - ahead**2, items).mean())
    passages = math.ceil(power.items_needed(ahead, differing=differing, design=design) / 5)
    seen = see(answers("", score, ahead, passages, 5, passage=0.5, item=0.5), draws)
    return (
        f"answers, passages of 5, design effect {design:.2f}, {100 * ahead:g} points",
        5 * passages,
        seen.named,
    )


def planned_texts(tail: str, ahead: float, draws: int) -> tuple[str, int, float]:
    trial = next(blocks(texts("", 100_000, tail), 20))
    sd = float(np.sqrt((intervals.clustered(trial.a - trial.b, trial.sizes).error ** 2).mean() * 100_000))
    documents = power.items_needed(ahead, sd=sd)
    return f"bits per byte, {tail}, {ahead:g}", documents, see(texts("", documents, tail, ahead), draws).named


def planned(draws: int) -> Iterator[tuple[str, int, float]]:
    for score, ahead, own in (
        (0.7, 0.05, 0.5),
        (0.7, 0.02, 0.5),
        (0.9, 0.03, 0.5),
        (0.5, 0.1, 0.5),
        (0.9, 0.03, 0.1),
    ):
        yield planned_answers(score, ahead, own, draws)
    for score, ahead in ((0.7, 0.05), (0.9, 0.03)):
        yield planned_passages(score, ahead, draws)
    for tail in ("normal", "heavy"):
        yield planned_texts(tail, 0.03, draws)


# ---------------------------------------------------------------------------------------------- the smaller formulas


def others(draws: int, seed: int = 0) -> dict[str, float]:
    """How often the true value lay inside: pass@k, seeds, kappa."""
    generator, found = np.random.default_rng(seed), {}

    solved = generator.beta(0.6, 0.8, (draws, 164))
    truth = 1 - math.exp(special.betaln(0.6, 0.8 + 5) - special.betaln(0.6, 0.8))
    each = samples.pass_at_k(np.full((draws, 164), 20), generator.binomial(20, solved), 5)
    low, high = intervals.clustered(each, np.ones_like(each)).ends(LEVEL)
    found["pass@5 of 164 problems, 20 samples"] = float(((low <= truth) & (truth <= high)).mean())
    few = min(draws, 10_000)
    for count in (3, 5):
        runs = generator.normal(size=(few, count + 1))
        bands = [seeds.seed_band(row[:count]) for row in runs]
        found[f"mean of {count} seeds"] = float(
            np.mean([band.mean.low <= 0 <= band.mean.high for band in bands])
        )
        found[f"one more run than {count} seeds"] = float(
            np.mean(
                [
                    band.another.low <= row[-1] <= band.another.high
                    for band, row in zip(bands, runs, strict=True)
                ]
            )
        )
    gaps = [
        seeds.seed_difference(row[:5], row[5:])[0]
        for row in generator.normal(size=(few, 10)) * ([1] * 5 + [2] * 5)
    ]
    found["difference of 5 and 5 seeds, spreads 1 and 2"] = float(
        np.mean([gap.low <= 0 <= gap.high for gap in gaps])
    )

    chances = np.array([[0.5, 0.06, 0.02], [0.05, 0.2, 0.03], [0.02, 0.03, 0.09]])
    agreed, by_chance = np.trace(chances), (chances.sum(0) * chances.sum(1)).sum()
    truth, held = (agreed - by_chance) / (1 - by_chance), 0
    for _ in range(few):
        first, second = np.divmod(generator.choice(9, 300, p=chances.ravel()), 3)
        kappa = cohen_kappa(first.tolist(), second.tolist(), categories=range(3))
        held += kappa.low <= truth <= kappa.high
    found["kappa of two raters, 300 items"] = held / few
    return found


def main(draws: int) -> None:
    print(f"{draws:,} draws each, seed 0\n")
    print("| world | score held | difference held | named | falsely | verdict allowed |")
    print("|---|---|---|---|---|---|")
    for make in WORLDS:
        world, started = make(), time.perf_counter()
        seen = see(world, draws)
        shares = (seen.score_held, seen.difference_held, seen.named, seen.false, seen.decided)
        print(f"| {world.name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)
        print(f"{world.name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    print("\n| 20 tasks under Holm, no true difference | any named |\n|---|---|")
    print("\n".join(f"| {name} | {share:.1%} |" for name, share in families(draws).items()), flush=True)
    print("\n| planned for 80% | items | found |\n|---|---|---|")
    for name, items, found in planned(draws):
        print(f"| {name} | {items:,} | {found:.1%} |", flush=True)
    print("\n| other intervals | held |\n|---|---|")
    print("\n".join(f"| {name} | {share:.1%} |" for name, share in others(draws).items()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
