"""What the gate decides in worlds where the truth is known: many draws, each through `decide` itself.

`python tests/release/simulated_gate.py [draws]` prints the tables of "The gate" in docs/statistics.md, with 10,000
draws each; the tests beside it ask for the same with bounds. Only the reading of files is left out: a drawn task hands
its scores over without a record for each.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy import special

from behemoth.evals.records import Evaluation, TaskResult
from behemoth.release.claims import items_for
from behemoth.release.evidence import CANDIDATE, Evidence
from behemoth.release.gate import decide
from behemoth.release.policy import Policy, parse_policy
from behemoth.stats.paired import BITS, POINTS, Scores

BASE, MODEL = "base", {CANDIDATE: "c" * 64, "base": "b" * 64}
RULES = {
    "name": "simulated",
    "version": "1",
    "held_out": True,
    "baselines": {"base": "student"},
    "stops": {"doctor": False, "receipt": False},
    "safety": {"waived": "nothing is measured in a simulation"},
    "licences": {"allow": ["Apache-2.0"], "model": "Apache-2.0"},
    "approvals": {"open": {"approver": 1}},
}
BETTER = {"is": "better", "than": BASE}
NOT_WORSE = {"is": "not worse", "than": BASE}


# -------------------------------------------------------------------------------------------- evidence from arrays


@dataclass(frozen=True)
class Drawn(TaskResult):
    """A task whose scores were drawn: as if each item had the record that its score came from."""

    drawn: Scores = field(default=Scores("", (), np.zeros(0)))

    def scores(self, model: str) -> Scores:
        return self.drawn


@cache
def items(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@cache
def records(count: int) -> list[dict[str, object]]:
    """Of items that all have a score; which one, `Drawn` says."""
    return [{"item": item, "score": 0.0, "error": "", "cluster": ""} for item in items(count)]


def drawn_task(
    name: str, values: np.ndarray, clusters: tuple[str, ...] = (), sizes: np.ndarray | None = None
) -> Drawn:
    ask, unit = ("generate", POINTS) if sizes is None else ("text", BITS)
    scores = Scores(name, items(len(values)), values, clusters, sizes, unit)
    return Drawn(name, "score", ask, "task " + name, records(len(values)), drawn=scores)


def evidence_of(candidate: dict[str, TaskResult], base: dict[str, TaskResult], **pieces: object) -> Evidence:
    """What `decide` is given, of two models' tasks."""
    facts = {
        "model": {"name": "simulated", "sha256": MODEL[CANDIDATE]},
        "policy_sha256": "",
        "baselines": {BASE: {"spec": "student", "sha256": MODEL[BASE]}},
        "tasks": {
            name: {"sha256": task.sha256, "items": len(task.records)} for name, task in candidate.items()
        },
    }
    evaluations = {
        name: Evaluation(name, MODEL[name], "", "simulated", tasks)
        for name, tasks in ((CANDIDATE, candidate), (BASE, base))
    }
    return Evidence("e" * 64, facts, evaluations, licences={"inputs": []}, **pieces)  # type: ignore[arg-type]


def policy_of(claims: list[dict[str, object]], **rules: object) -> Policy:
    claims = [{"name": f"claim-{i}", "says": "is as claimed", "task": f"task-{i}", "modes": ["open"]} | claim
              for i, claim in enumerate(claims)]  # fmt: skip
    return parse_policy(RULES | {"claims": claims} | rules)


# ---------------------------------------------------------------------------------------------------------- worlds


Pair = Callable[
    [np.random.Generator, str], tuple[Drawn, Drawn]
]  # candidate and base on the task of that name


def answers(score: float, ahead: float, count: int, own: float = 0.5) -> Pair:
    """Right-or-wrong answers, one threshold on what is hard about the item and each model's own luck."""
    spread = math.sqrt(1 + own)
    thresholds = special.ndtri([score, score - ahead])[:, None] * spread

    def draw(generator: np.random.Generator, name: str) -> tuple[Drawn, Drawn]:
        hard = generator.normal(size=count)
        right = hard + math.sqrt(own) * generator.normal(size=(2, count)) < thresholds
        a, b = (drawn_task(name, values) for values in right.astype(float))
        return a, b

    return draw


def passages(score: float, ahead: float, clusters: int, size: int, passage: float = 0.5) -> Pair:
    """The same with `size` questions on each passage, which is hard or easy in itself, for each model by its own."""
    spread = math.sqrt(1.25 * passage + 1)
    thresholds = special.ndtri([score, score - ahead])[:, None, None] * spread
    names = tuple(str(i // size) for i in range(clusters * size))

    def draw(generator: np.random.Generator, name: str) -> tuple[Drawn, Drawn]:
        hard = math.sqrt(passage) * generator.normal(size=(1, clusters, 1))
        hard = hard + math.sqrt(passage / 4) * generator.normal(size=(2, clusters, 1))
        hard = hard + math.sqrt(0.5) * generator.normal(size=(1, clusters, size))
        right = hard + math.sqrt(0.5) * generator.normal(size=(2, clusters, size)) < thresholds
        a, b = (drawn_task(name, values, names) for values in right.reshape(2, -1).astype(float))
        return a, b

    return draw


def gains_only(ahead: float, count: int) -> Pair:
    """A base that has nothing right, and a candidate that has a share right."""

    def draw(generator: np.random.Generator, name: str) -> tuple[Drawn, Drawn]:
        right = (generator.random(count) < ahead).astype(float)
        return drawn_task(name, right), drawn_task(name, np.zeros(count))

    return draw


def whole_passages(score: float, clusters: int, size: int) -> Pair:
    """Passages of which either all questions are right or none, each model by its own luck."""
    names = tuple(str(i // size) for i in range(clusters * size))

    def draw(generator: np.random.Generator, name: str) -> tuple[Drawn, Drawn]:
        right = np.repeat(generator.random((2, clusters)) < score, size, axis=1).astype(float)
        a, b = (drawn_task(name, values, names) for values in right)
        return a, b

    return draw


def unequal(score: float, sizes: np.ndarray, alike: float) -> Pair:
    """Passages of unequal size: the candidate has a share of each right that differs from passage to passage, and
    `alike` is the correlation within one (1: all of it right, or none). The base has everything right."""
    names = tuple(map(str, np.repeat(np.arange(len(sizes)), sizes)))
    a, b = (part * (1 / max(alike, 1e-9) - 1) for part in (score, 1 - score))

    def draw(generator: np.random.Generator, name: str) -> tuple[Drawn, Drawn]:
        rates = generator.beta(a, b, len(sizes)) if alike < 1 else generator.random(len(sizes)) < score
        right = (generator.random(len(names)) < np.repeat(rates, sizes)).astype(float)
        return drawn_task(name, right, names), drawn_task(name, np.ones(len(names)), names)

    return draw


def texts(documents: int, ahead: float, spread: float = 0.1, rare: float = 0.0, loss: float = 0.0) -> Pair:
    """Bits of documents of unequal size; the models differ by `ahead` per byte and a part with heavy tails. Of a share
    `rare` of all documents the candidate knows less: they carry `loss`, in bits per byte of the whole."""

    def draw(generator: np.random.Generator, name: str) -> tuple[Drawn, Drawn]:
        sizes = np.minimum(np.exp(generator.normal(8.6, 1, documents)).round() + 1, 12_000)
        rate = 2 + 0.35 * generator.normal(size=documents)
        behind = ahead + spread * generator.standard_t(3, documents) / math.sqrt(3)
        if rare:
            behind = behind - (generator.random(documents) < rare) * loss / rare
        return drawn_task(name, rate * sizes, sizes=sizes), drawn_task(
            name, (rate + behind) * sizes, sizes=sizes
        )

    return draw


def marks(count: int, ahead: float) -> Pair:
    """Quarters of a point."""

    def draw(generator: np.random.Generator, name: str) -> tuple[Drawn, Drawn]:
        easy = 0.2 + 0.7 * generator.beta(4, 2, count)
        a, b = (generator.binomial(4, easy - behind) / 4 for behind in (0.0, ahead))
        return drawn_task(name, a), drawn_task(name, b)

    return draw


@dataclass(frozen=True)
class World:
    """Claims, the tasks they are about, and how many of the first ones are false."""

    name: str
    claims: tuple[dict[str, object], ...]
    pairs: tuple[Pair, ...]
    false: int = 1


@dataclass(frozen=True)
class Seen:
    """Shares of all draws. told: any claim told to hold that is false."""

    release: float
    hold: float
    unknown: float
    told: float


def see(world: World, draws: int, seed: int = 0) -> Seen:
    policy, seen = policy_of(list(world.claims)), Counter[str]()
    for number in range(draws):
        generator = np.random.default_rng([seed, number])
        drawn = [pair(generator, f"task-{i}") for i, pair in enumerate(world.pairs)]
        candidate, base = ({task.name: task for task in side} for side in zip(*drawn, strict=True))
        verdict = decide(policy, "open", evidence_of(candidate, base))
        claims = [check for check in verdict["checks"] if check["kind"] == "claim"]
        seen[verdict["verdict"]] += 1
        seen["told"] += any(check["status"] == "holds" for check in claims[: world.false])
    return Seen(*(seen[outcome] / draws for outcome in ("release", "hold", "unknown", "told")))


def one(name: str, claim: dict[str, object], pair: Pair) -> World:
    return World(name, (claim,), (pair,))


def several(name: str, claim: dict[str, object], pairs: list[Pair], false: int) -> World:
    return World(name, (claim,) * len(pairs), tuple(pairs), false)


def nothing_to_find() -> Iterator[World]:
    """No true difference, or exactly the one at the bar: what must not be released."""
    for count in (100, 300, 1000):
        for score in (0.1, 0.5, 0.9):
            yield one(f"better, {count:,} items, score {score}", BETTER, answers(score, 0, count))
    for clusters in (30, 100):
        for score in (0.5, 0.9):
            name = f"better, {clusters} passages of 5, score {score}"
            yield one(name, BETTER, passages(score, 0, clusters, 5))
    yield one("better, 40 passages of 10 right or wrong as a whole", BETTER, whole_passages(0.7, 40, 10))
    yield one("better, 60 documents", BETTER, texts(60, 0))
    yield one("better, 200 marks", BETTER, marks(200, 0))
    yield one("better by 10 points, truly by 10, 300 items", BETTER | {"margin": 0.1}, answers(0.6, 0.1, 300))
    yield one(
        "better by 2 points, truly by 2, nothing lost, 300 items",
        BETTER | {"margin": 0.02},
        gains_only(0.02, 300),
    )
    by = NOT_WORSE | {"margin": 0.05}
    yield one("not worse by 5 points, truly by 5, 300 items", by, answers(0.6, -0.05, 300))
    yield one("not worse by 5 points, truly by 5, 100 passages of 5", by, passages(0.6, -0.05, 100, 5))
    by = NOT_WORSE | {"margin": 0.02}
    yield one("not worse by 0.02 bits, truly by 0.02, 400 documents", by, texts(400, -0.02))
    for bar, count in ((0.9, 200), (0.98, 300), (0.5, 100)):
        at = {"is": "at least", "bar": bar}
        yield one(f"at least {bar}, truly {bar}, {count} items", at, answers(bar, 0, count))
        at = {"is": "at most", "bar": round(1 - bar, 2)}
        yield one(f"at most {at['bar']}, truly {at['bar']}, {count} items", at, answers(1 - bar, 0, count))
    at = {"is": "at least", "bar": 0.9}
    yield one("at least 0.9, truly 0.9, 100 passages of 5", at, passages(0.9, 0, 100, 5))
    at = {"is": "at least", "bar": 0.95}
    yield one("at least 0.95, truly 0.95, 100 passages, each as a whole", at, whole_passages(0.95, 100, 5))


UNEQUAL = {
    "35 passages of 20 and 300 of 1": np.repeat([20, 1], [35, 300]),
    "40 passages of 10 and 200 of 1": np.repeat([10, 1], [40, 200]),
    "60 passages of 1 to 20": np.arange(60) % 20 + 1,
    "100 passages of log-normal size": np.maximum(
        1, np.exp(special.ndtri((np.arange(100) + 0.5) / 100) + 1.5)
    ).astype(int),
}


def passages_unlike() -> Iterator[World]:
    """Passages of unequal size, whose truth lies at the bar."""
    kinds = {1.0: "each as a whole", 0.5: "half alike", 0.3: "a third alike"}
    for named, sizes in UNEQUAL.items():
        for score in (0.95, 0.9, 0.8):
            for alike, kind in kinds.items():
                pair, what = unequal(score, sizes, alike), f"{named}, {kind}"
                yield one(f"at least {score}, truly {score}, {what}", {"is": "at least", "bar": score}, pair)
                if score == 0.95:
                    by = NOT_WORSE | {"margin": 0.05}
                    yield one(f"not worse by 5 points, truly by 5, {what}", by, pair)
        by = NOT_WORSE | {"margin": 0.05}
        yield one(
            f"not worse by 5 points, truly by 8, {named}, each as a whole", by, unequal(0.92, sizes, 1.0)
        )


def lost(documents: int, margin: float, rare: float, times: int = 1) -> World:
    """A text claim where the margin, or `times` that, is lost in a share `rare` of all documents and nowhere else."""
    loss = times * margin
    where = f"all in {100 * rare:g}% of texts ({loss / rare:.1f} bits each), {documents} documents"
    name = f"not worse by {margin} bits, truly by {loss:g}, {where}"
    return one(name, NOT_WORSE | {"margin": margin}, texts(documents, 0, 0.02, rare, loss))


def rare_losses() -> Iterator[World]:
    """Rare texts that cost about twice the bits, which are 2 in this world."""
    for documents, margin, rare in (
        *((60, 0.05, 0.025), (60, 0.15, 0.075), (100, 0.05, 0.025), (150, 0.05, 0.025)),
        *((count, 0.05, 0.02) for count in (60, 100, 150, 200)),
    ):
        yield lost(documents, margin, rare)
    yield from (lost(count, 0.05, 0.02, 2) for count in (60, 100, 200))


def lost_for_good() -> Iterator[World]:
    """Rare texts that cost more than the gate takes into account: what it does not hold."""
    yield lost(60, 0.15, 0.04)
    yield lost(60, 0.15, 0.02)


def twenty() -> Iterator[World]:
    plain = [answers(0.1 + 0.04 * i, 0, 100 + 20 * i) for i in range(20)]
    clustered = [passages(0.1 + 0.04 * i, 0, 40 + 3 * i, 5) for i in range(20)]
    good = [plain[7], *(answers(0.9, 0.5, 120) for _ in range(19))]
    yield several("20 claims, none true, 100 to 480 items", BETTER, plain, 20)
    yield several("20 claims, none true, 40 to 97 passages of 5", BETTER, clustered, 20)
    yield several("20 claims, 19 true and plain to see, one not", BETTER, good, 1)


@dataclass(frozen=True)
class Planned:
    """A regression of twice the margin, at the items that `items_for` asks for."""

    name: str
    items: int
    world: World


def regressions() -> Iterator[Planned]:
    for score, margin, own in (
        (0.5, 0.1, 0.5),
        (0.7, 0.05, 0.5),
        (0.7, 0.02, 0.5),
        (0.9, 0.03, 0.5),
        (0.9, 0.02, 0.1),
    ):
        rule = NOT_WORSE | {"margin": margin}
        gap, _ = trial(answers(score, -2 * margin, 1000, own))
        apart = float((gap != 0).mean())
        count = items_for(policy_of([rule]).claims[0], differing=apart)
        name = f"answers, {apart:.1%} differ, margin {100 * margin:g} points"
        yield Planned(name, count, one(name, rule, answers(score, -2 * margin, count, own)))
    rule, margin = NOT_WORSE | {"margin": 0.05}, 0.05
    gap, _ = trial(passages(0.7, -2 * margin, 200, 5))
    apart, design = float((gap != 0).mean()), float(gap.reshape(-1, 5).mean(1).var() / (gap.var() / 5))
    count = 5 * math.ceil(items_for(policy_of([rule]).claims[0], differing=apart, design=design) / 5)
    name = f"passages of 5, design effect {design:.2f}, margin 5 points"
    yield Planned(name, count, one(name, rule, passages(0.7, -2 * margin, count // 5, 5)))
    rule, margin = NOT_WORSE | {"margin": 0.03}, 0.03
    gap, sizes = trial(texts(1000, 0))
    sd = float(
        (gap - gap.sum() / sizes.sum() * sizes).std() / sizes.mean()
    )  # of one document's part in the whole
    count = items_for(policy_of([rule]).claims[0], sd=sd)
    name = "documents, margin 0.03 bits per byte"
    yield Planned(name, count, one(name, rule, texts(count, -2 * margin)))


def trial(pair: Pair, draws: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """By how much the base is ahead on each of many items, and their sizes."""
    generator = np.random.default_rng(1)
    drawn = [[task.drawn for task in pair(generator, "trial")] for _ in range(draws)]
    gap = np.concatenate([b.values - a.values for a, b in drawn])
    return gap, np.concatenate([np.ones(len(a.values)) if a.sizes is None else a.sizes for a, _ in drawn])


def too_little() -> Iterator[World]:
    """Too few items, though the difference is plain."""
    yield one("99 items", BETTER, answers(0.9, 0.8, 99))
    yield one("29 passages of 20", BETTER, passages(0.9, 0.8, 29, 20))
    asked = BETTER | {"items": 301}
    yield one("300 items where the policy asks for 301", asked, answers(0.9, 0.8, 300))
    yield one("99 items of a model that is plainly worse", BETTER, answers(0.1, -0.8, 99))
    yield one("30 documents of unequal size", BETTER, texts(30, 1.0))


def main(draws: int) -> None:
    def row(name: str, *cells: str) -> None:
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)

    print(f"{draws:,} draws each, seed 0\n\n| what is not so | released | told to hold |\n|---|---|---|")
    for world in [*nothing_to_find(), *passages_unlike(), *rare_losses(), *lost_for_good(), *twenty()]:
        started, seen = time.perf_counter(), see(world, draws)
        row(world.name, f"{seen.release:.1%}", f"{seen.told:.1%}")
        print(f"{world.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print("\n| a regression of twice the margin | items | held | released |\n|---|---|---|---|")
    for plan in regressions():
        seen = see(plan.world, draws)
        row(plan.name, f"{plan.items:,}", f"{seen.hold:.1%}", f"{seen.release:.1%}")
    print("\n| too little | unknown |\n|---|---|")
    for world in too_little():
        row(world.name, f"{see(world, draws).unknown:.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
