"""What came after pretraining: what each stage changed, how it went, what it said, and what it was given.

A stage (SFT, RL, DPO) writes the lines that pretraining writes, so its curves are those of `learning`, over steps and
in small panels. RL has more to watch: reward and length move before a score does when a policy learns to please its
graders instead of solving its problems (Gao et al. 2022, arXiv 2210.10760), and the answers themselves show how.
Only what was written is drawn; a stage that was not in the recipe is not said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from behemoth.base.units import human_duration, some
from behemoth.report import learning, pictures, tasks
from behemoth.report.compare import folded, legible, long_text, mark
from behemoth.report.forest import between, forest, plain, signed
from behemoth.report.markup import NARROW, figure, table, words
from behemoth.report.pictures import Curve
from behemoth.report.run import Run, Stage, is_number
from behemoth.report.svg import Point

NAMES = {"sft": "SFT", "rl": "RL", "dpo": "DPO"}
TITLES = {
    "sft": "SFT: fine-tuning on conversations",
    "rl": "RL: reinforcement learning on graded answers",
    "dpo": "DPO: preferences",
}
DRIFTS = {"entropy": "entropy", "drift": "sampler against trainer", "kl": "distance from the reference"}
TASKS, GROUPS = 4, 2  # of the answers shown: tasks, and groups of each
ENDINGS = {"stop": "finished", "length": "cut off"}
POINTS = "points"


def assistant(run: Run) -> str:
    """The section from base to assistant; "" where nothing came after pretraining."""
    return exam(run.assistant) + "".join(stage(name, of) for name, of in run.after.items())


def known(name: str) -> str:
    return NAMES.get(name, name)


# ------------------------------------------------------------------------------------------- what each stage changed


def exam(found: Mapping[str, Any]) -> str:
    """Every stage's score, and its paired difference to the stage before: a table and a forest."""
    models = found.get("models", [])
    if not models:
        return ""
    names = list(dict.fromkeys(task for model in models for task in model["scores"]))
    rows: list[list[str]] = []
    for task in names:
        rows.append([words(task)])
        rows += exam_rows(task, models, found.get("steps", []))
    if any(is_number(model.get("bits_per_byte")) for model in models):
        rows.append(["held-out text, bits per byte"])
        rows += [held_out_row(model, found.get("held_out", [])) for model in models]
    return (
        "".join(f'<p class="lead">{in_words(task, models)}</p>' for task in names[:1])
        + table(
            ["model", "score", "change", "verdict"],
            rows,
            numbers={1, 2},
            caption="Percent right with 95% intervals; each stage against the one before it, item by item, in points.",
        )
        + exam_figure(found.get("steps", []), len(names) > 1)
    )


def in_words(task: str, models: Sequence[Mapping[str, Any]]) -> str:
    asked = [model for model in models if task in model["scores"]]
    first, last = asked[0], asked[-1]
    scores = [f"{plain(model['scores'][task]['estimate'], POINTS)}%" for model in (first, last)]
    items = first["scores"][task].get("items")
    problems = f" of {items:,} problems" if is_number(items) else ""
    said = f"{known(first['name'])} gets {scores[0]}{problems} of {task} right; after {known(last['name'])} it is"
    return f"{words(said[:1].upper() + said[1:])} <b>{scores[1]}</b>."


def exam_rows(
    task: str, models: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    of = {(step["from"], step["to"]): step for step in steps if step["task"] == task}
    asked = [model for model in models if task in model["scores"]]
    rows = []
    for i, model in enumerate(asked):
        score = model["scores"][task]
        step = of.get((asked[i - 1]["name"], model["name"])) if i else None
        rows.append(
            [words(known(model["name"])), with_interval(plain, score, score["estimate"]), *change(step)]
        )
    return rows


def change(step: Mapping[str, Any] | None) -> list[str]:
    if step is None:
        return ["–", ""]
    verdict = f"{mark(step)}&ensp;{words(step['verdict'])}"
    return [with_interval(signed, step, step["difference"]), verdict]


def with_interval(say: Callable[[Any, str], str], of: Mapping[str, Any], value: Any) -> str:
    interval = f"<small>{between(of, POINTS, say)}</small>" if is_number(of.get("low")) else ""
    return f"{say(value, POINTS)}{interval}"


def held_out_row(model: Mapping[str, Any], changes: Iterable[Mapping[str, Any]]) -> list[str]:
    bits = model.get("bits_per_byte")
    worse = next((of["worse_percent"] for of in changes if of["to"] == model["name"]), None)
    moved = f"{worse:+.1f}%".replace("-", "−") if is_number(worse) else "–"
    return [words(known(model["name"])), f"{bits:.3f}" if is_number(bits) else "–", moved, ""]


def exam_figure(steps: Sequence[Mapping[str, Any]], named: bool) -> str:
    rows = [
        {
            **step,
            "unit": POINTS,
            "task": f"{known(step['from'])} → {known(step['to'])}" + (f", {step['task']}" if named else ""),
        }
        for step in steps
    ]
    if not rows:
        return ""
    return figure(
        lambda width: forest(rows, ("after", "before"), width),
        "What each stage changed, in points of percent right. Filled is a verdict, hollow is “cannot tell”.",
    )


# ----------------------------------------------------------------------------------------------------------- a stage


def stage(name: str, of: Stage) -> str:
    parts = given(name, of.data) + how_it_went(name, of) + transcripts(of)
    for member, lines in learning.grouped(of.samples, "member"):
        said = f"What {words(known(member))} says to fixed prompts"
        parts += folded(said, learning.prompts(of, lines))
    return f"<h3>{TITLES[name]}</h3>{parts}" if parts else ""


def given(name: str, report: Mapping[str, Any]) -> str:
    """What was read, kept and rejected, and why."""
    if not report:
        return ""
    what = "pairs" if name == "dpo" else "conversations"
    sources = report.get("sources", {})
    reasons = sorted(counts(report.get("rejected")).items(), key=lambda of: -of[1])
    said = f"{count(report.get('kept'))} {what} kept, {total(report.get('rejected')):,} rejected"
    said += ": " + ", ".join(f"{number:,} {words(why)}" for why, number in reasons) if reasons else ""
    rows = [
        [words(source), count(part.get("kept")), f"{total(part.get('rejected')):,}"]
        for source, part in sources.items()
    ]
    tabled = table(["source", "kept", "rejected"], rows, numbers={1, 2}) if rows else ""
    return f'<p class="note">{said}.</p>{tabled}'


def counts(rejected: Any) -> dict[str, int]:
    return dict(rejected) if isinstance(rejected, Mapping) else {}


def total(rejected: Any) -> int:
    """However it was counted: by reason, or all at once."""
    return rejected if isinstance(rejected, int) else sum(counts(rejected).values())


def count(number: Any) -> str:
    return f"{number:,}" if is_number(number) else "–"


def how_it_went(name: str, of: Stage) -> str:
    """Curves side by side, and in words what they cannot say."""
    if not of.metrics:
        return ""
    caption = f"{known(name)} over its steps. Bars at dots are 95% intervals."
    if name == "rl":
        caption += (
            " Solved and finished count answers; no signal counts groups whose answers all scored alike, from which "
            "nothing is learned."
        )
    drawn = "".join([*objective_panels(name, of), *score_panels(name, of)])
    shown = (
        f'<figure><div class="pair">{drawn}</div><figcaption>{caption}</figcaption></figure>' if drawn else ""
    )
    return outcome(of) + shown + learning.skipped_steps(of) + time_of(name, of)


def objective_panels(name: str, of: Stage) -> list[str]:
    """What the stage's own objective reports."""
    if name == "sft":
        return [panel("loss in sft", "loss, nats per token", learning.member_curves(of, "loss"))]
    if name == "dpo":
        rewards = {"margin": "margin", "chosen": "reward_chosen", "rejected": "reward_rejected"}
        drawn = [
            Curve(said, points)
            for said, key in rewards.items()
            for member in of.member_names()
            if (points := of.series(member, key))
        ]
        return [
            panel("loss in dpo", "loss, nats per pair", learning.member_curves(of, "loss")),
            panel("accuracy in dpo", "pairs told apart, share", learning.member_curves(of, "accuracy")),
            panel("margin in dpo", "implied reward of the chosen and the rejected", drawn),
        ]
    return rollout_panels(of) + [
        panel(f"{key} in rl", f"{said}, nats per token", learning.member_curves(of, key), from_zero=True)
        for key, said in DRIFTS.items()
    ]


def score_panels(name: str, of: Stage) -> list[str]:
    drawn = []
    for task in dict.fromkeys(line["task"] for line in of.task_scores):
        found, unit = tasks.curves_of(of, task)
        drawn.append(panel(f"{task} in {name}", f"{task}, {unit}", found))
    bits = learning.held_out_curves(of)
    return [*drawn, panel(f"held-out text in {name}", "held-out text, bits per byte", bits)]


def panel(title: str, unit: str, found: Sequence[Curve], from_zero: bool = False) -> str:
    """One of several small pictures side by side, as wide as a phone; "" where there is nothing to draw."""
    if not found:
        return ""
    drawn = pictures.curves(found, NARROW, title, unit, from_zero=from_zero, decimals=None, x_title="steps")
    return f"<div>{drawn}</div>"


def rollout_panels(of: Stage) -> list[str]:
    """Reward and its parts, what became of the answers, task by task where there are several, and their length."""
    lines = [(float(line["step"]), line["rollouts"]) for line in of.metrics if line.get("rollouts")]

    def over(get: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[Curve]:
        points: dict[str, list[Point]] = {}
        for step, rollouts in lines:
            for name, y in get(rollouts).items():
                if is_number(y):
                    points.setdefault(name, []).append((step, float(y)))
        return [Curve(name, found) for name, found in points.items()]

    by_task = over(lambda of: of.get("tasks", {}))
    return [
        panel("reward in rl", "reward", over(lambda of: {"reward": of.get("reward")})),
        panel("parts in rl", "parts of the reward", over(lambda of: of.get("parts", {}))),
        panel("answers in rl", "share of answers, or of groups", over(shares), from_zero=True),
        panel("tasks in rl", "share solved", by_task) if len(by_task) > 1 else "",
        panel("length in rl", "tokens of an answer", over(length), from_zero=True),
    ]


def shares(of: Mapping[str, Any]) -> dict[str, Any]:
    unsaid = ratio(of.get("groups_without_signal"), of.get("groups"))
    return {"solved": of.get("pass_rate"), "finished": of.get("finished"), "no signal": unsaid}


def length(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"length": ratio(of.get("tokens"), of.get("samples"))}


def ratio(part: Any, whole: Any) -> float | None:
    return part / whole if is_number(part) and is_number(whole) and whole else None


def outcome(of: Stage) -> str:
    """Which step was kept, and whether it ran to its end."""
    found = of.outcome
    if not is_number(found.get("best_step")):
        return ""
    score = (
        f", with {plain(found['best_score'], POINTS)}% right" if is_number(found.get("best_score")) else ""
    )
    ended = (
        f"It stopped early, after {count(found.get('steps'))} steps: {words(found['stopped'])}."
        if found.get("stopped")
        else f"It went through all its {count(found.get('steps'))} steps."
    )
    return f"<p>The best step was {found['best_step']:,}{score}; that one is kept. {ended}</p>"


def time_of(name: str, of: Stage) -> str:
    """Where the seconds went: sampling, grading, scoring; the rest of a step is training."""
    lines = [line for line in of.metrics if (line.get("rollouts") or {}).get("seconds")]
    spent: dict[str, float] = {}
    for line in lines:
        parts = {part: s for part, s in line["rollouts"]["seconds"].items() if is_number(s)}
        for part, seconds in (parts | {"training": max(line["seconds"] - sum(parts.values()), 0.0)}).items():
            spent[part] = spent.get(part, 0.0) + seconds
    whole = sum(spent.values())
    if not whole:
        return ""
    said = ", ".join(f"{words(part)} {seconds / whole:.0%}" for part, seconds in spent.items())
    return figure(
        lambda width: pictures.stage_times(spent, width, f"Time in {name}"),
        f"Where the time of {known(name)} went: {said}; {human_duration(whole)} in all.",
    )


# ------------------------------------------------------------------------------------------------------- transcripts


def transcripts(of: Stage) -> str:
    """First steps beside last ones: of each task the groups whose answers differ most, their best and worst answer."""
    first, last = learning.grouped(of.first, "task"), dict(learning.grouped(of.last, "task"))
    rows = []
    for task, lines in first[:TASKS]:
        sides = zip_longest(telling(lines), telling(last.get(task, [])[::-1]))
        both = "".join(
            f'<article class="item"><div class="pair">{"".join(map(group, side))}</div></article>'
            for side in sides
        )
        rows.append(folded(f"Answers to {words(task)}, first steps beside last ones", both))
    left_out = [task for task, _ in first[TASKS:]]
    if left_out:
        rows.append(f'<p class="note">Not shown: {words(some(left_out))}.</p>')
    return "".join(rows).replace("<details>", "<details open>", 1)


def telling(lines: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The groups (answers to one prompt in one step) whose rewards differ most, each from best to worst."""
    groups: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for line in lines:
        if is_number(line.get("reward")):
            groups.setdefault((line["step"], line.get("prompt_id")), []).append(line)
    ordered = [sorted(found, key=lambda line: -line["reward"]) for found in groups.values()]
    return sorted(ordered, key=lambda found: found[-1]["reward"] - found[0]["reward"])[:GROUPS]


def group(lines: Sequence[Mapping[str, Any]] | None) -> str:
    if not lines:
        return "<div></div>"
    best, worst = lines[0], lines[-1]
    title = f'<p class="facts">Step {best["step"]:,}</p>'
    prompt = f"<h4>Prompt</h4>{long_text(legible(str(best.get('prompt', ''))), from_end=True)}"
    if best["reward"] == worst["reward"]:
        return f"<div>{title}{prompt}{answer('Answer', best)}</div>"
    return f"<div>{title}{prompt}{answer('Best', best)}{answer('Worst', worst)}</div>"


def answer(title: str, line: Mapping[str, Any]) -> str:
    parts = [f"{words(name)} {number(value)}" for name, value in (line.get("parts") or {}).items()]
    parts += [f"advantage {number(line['advantage'])}"] if is_number(line.get("advantage")) else []
    parts += [f"{line['tokens']:,} tokens"] if is_number(line.get("tokens")) else []
    parts += [words(ENDINGS.get(line["finish"], line["finish"]))] if line.get("finish") else []
    score = f'<span class="score">reward {number(line["reward"])}</span>'
    text = long_text(legible(str(line.get("text", ""))))
    return f'<h4>{title} {score}</h4>{text}<p class="note">{", ".join(parts)}</p>'


def number(value: Any) -> str:
    return f"{value:.3g}".replace("-", "−") if is_number(value) else words(value)
