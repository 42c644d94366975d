"""One page that says what a run made, how it went and how sure that is.

Everything is read from the run directory and written into a single file: no script, no font, no request to
anywhere (a content-security policy in the page holds that even where a sample contains markup). What the
model wrote is hostile text: every string goes through `words`.

Reading order is that of a paper: what it is and how good, whether it may go out, how it learned, what its
experts do, what it says, and then everything needed to do it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from behemoth.base.files import write_atomic
from behemoth.base.units import counted, human_count, human_duration
from behemoth.report import assistant, experts, learning, pictures, tasks, verdict
from behemoth.report.markup import both, figure, missing, page, table, words
from behemoth.report.run import Member, Run, is_number, read_run
from behemoth.report.svg import spaced

LAYERS_SHOWN = 8
CELLS = 1200  # of one picture of the experts' load


def build_report(path: Path) -> Path:
    """Write `path`/report.html from the files of the run directory and return where it is.

    Raises InputError if `path` is no run directory; a part of a run that is not there yet is said to be
    missing.
    """
    run = read_run(path)
    write_atomic(path / "report.html", render(run).encode("utf-8"))
    return path / "report.html"


def render(run: Run) -> str:
    sections = {
        "Results": results(run),
        "Tasks": tasks.tasks(run),
        "From base to assistant": assistant.assistant(run),
        "Verdict": verdict.section(run.path / "gate"),
        "Learning": learning.learning(run),
        "Experts": load_over_time(run) + expert_worth(run) + expert_tokens(run),
        "Samples": learning.samples(run),
        "Doctor": tasks.doctor(run),
        "Data": data(run),
        "Recipe": recipe(run),
        "Time": times(run),
        "Record": record(run),
    }
    title = words(run.path.resolve().name)
    return page(
        f"{title}: report of a run",
        title,
        subtitle(run),
        headline(run),
        sections,
        "Intervals speak of other documents of the same kind, not of other training runs.",
    )


# ---------------------------------------------------------------------------------------------------- the
# headline


def subtitle(run: Run) -> str:
    finished = [stage["finished"] for stage in run.stages.values() if stage.get("finished")]
    when = f", {max(finished)[:10]}" if finished else ", not finished"
    return f"Report of a training run{words(when)}"


def headline(run: Run) -> str:
    """What the model is and how good, in one paragraph."""
    parts = [*map(what_it_is, run.leaders()), what_it_read(run), how_good(run)]
    said = " ".join(part for part in parts if part)
    return f'<p class="lead">{said}</p>' if said else missing("Training")


def what_it_is(member: Member) -> str:
    layers, count = member.config.get("num_hidden_layers"), member.config.get("num_local_experts", 0)
    if not count:
        size = human_count(member.parameters)
        return f"<b>{words(member.name)}</b> is a dense language model of {size} parameters."
    total, active = human_count(member.parameters), human_count(member.active)
    return (
        f"<b>{words(member.name)}</b> is a sparse mixture-of-experts language model of {total} parameters, of "
        f"which each token uses {active}: {layers} layers, {count} experts, "
        f"{member.config.get('num_experts_per_tok', 1)} of them chosen for each token beside a shared one."
    )


def what_it_read(run: Run) -> str:
    if not run.metrics:
        return ""
    tokens = max(run.tokens_at().values())
    seconds = sum(line.get("seconds", 0) for line in run.metrics)
    others = len(run.member_names()) - 1
    along = f", together with {counted(others, 'other model')}" if others > 0 else ""
    return f"It learned from {human_count(tokens)} tokens in {human_duration(seconds)}{along}."


def how_good(run: Run) -> str:
    rows = [row for row in run.results.get("models", []) if row.get("kind") == "model"]
    if not rows:
        return ""
    first = run.member_names()[:1]
    row = next((row for row in rows if row["name"] in first), rows[0])
    bits = f"<b>{row['bits_per_byte']:.3f} bits per byte</b>{between(row)}"
    return f"On {row['documents']} documents that it had not seen it needs {bits}."


def between(row: dict[str, Any]) -> str:
    return f" (95% interval {row['low']:.3f} to {row['high']:.3f})" if is_number(row.get("low")) else ""


# ------------------------------------------------------------------------------------------------------
# what it can


def results(run: Run) -> str:
    rows = run.results.get("models", [])
    if not rows:
        return missing("The evaluation")
    unit = run.results.get("unit", "bits per byte")
    drawing = figure(
        lambda width: pictures.intervals(rows, width, unit),
        f"Held-out {words(unit)} with 95% intervals. Filled: models of this run, and baselines fitted on the "
        "very tokens they saw; hollow: references that saw other text.",
    )
    counts = dict.fromkeys(f"{row['documents']:,}" for row in rows)
    said = [sentence_item(comparison["sentence"]) for comparison in run.results.get("comparisons", [])]
    return "".join(
        [
            f'<ul class="plain">{"".join(said)}</ul>' if said else "",
            f'<p class="note">{words(sentence(run.results["family"]))}</p>'
            if run.results.get("family")
            else "",
            drawing,
            table(
                ["name", words(unit), "95% interval"],
                [result_row(row) for row in rows],
                numbers={1, 2},
                classes=[row.get("kind", "") for row in rows],
                caption=f"On {words(' or '.join(counts))} documents that no model was trained on{how_scored(run)}.",
            ),
        ]
    )


def how_scored(run: Run) -> str:
    return f", {words(run.results['note'])}" if run.results.get("note") else ""


def sentence_item(said: str) -> str:
    mark = "?" if said.startswith("cannot tell") else "•"
    return f"<li>{mark}&ensp;{words(sentence(said))}</li>"


def sentence(said: str) -> str:
    return f"{said[:1].upper()}{said[1:]}."


def result_row(row: dict[str, Any]) -> list[str]:
    name = words(row["name"]) + (f"<small>{words(row['note'])}</small>" if row.get("note") else "")
    interval = f"{row['low']:.3f} to {row['high']:.3f}" if is_number(row.get("low")) else "–"
    return [name, f"{row['bits_per_byte']:.3f}", interval]


# ---------------------------------------------------------------------------------------------- what the
# experts do


def load_over_time(run: Run) -> str:
    """The first model's in the open, the others' folded away."""
    drawn = {name: found for name in run.member_names() if (found := member_load(run, name))}
    if not drawn:
        return missing("Routing of tokens to experts during training")
    first, *others = drawn
    folded = [
        f"<details><summary>The same for {words(name)}</summary>{drawn[name]}</details>" for name in others
    ]
    return drawn[first] + "".join(folded)


def member_load(run: Run, name: str) -> str:
    tokens = run.tokens_at()
    members = [(tokens[line["step"]], line.get("members", {}).get(name, {})) for line in run.metrics]
    lines = [(at, member["load"]) for at, member in members if member.get("load")]
    if not lines:
        return ""
    layers = sparse_layers(run, name, len(lines[0][1]))
    chosen = spaced(len(layers), LAYERS_SHOWN)
    parts = []
    for i in chosen:
        over_time = [load[i] for _, load in lines]
        grid = pictures.load_grid(over_time, max(12, CELLS // len(over_time[0]) // 2))
        draw = drawing_of_load(grid, (lines[0][0], lines[-1][0]), layers[i], name)
        parts.append(f'<p class="note">Layer {layers[i]}</p>{both(draw)}')
    left_out = len(layers) - len(chosen)
    caption = (
        f"Load of the experts of {words(name)} over training, a row for each. Blank is an even share; blue "
        "is less, down to none at full colour; orange is more, up to twice the share or beyond."
        + (f" {left_out} layers in between are not shown." if left_out else "")
    )
    return f"<figure>{''.join(parts)}<figcaption>{caption}</figcaption></figure>"


def drawing_of_load(
    grid: list[list[float]], time: tuple[float, float], layer: int, name: str
) -> Callable[[float], str]:
    return lambda width: pictures.expert_load(grid, time, width, layer, name)


def sparse_layers(run: Run, name: str, count: int) -> list[int]:
    """The numbers of the sparse layers, where the evaluation or the order of layers says them."""
    known = [layer["layer"] for layer in run.experts.get(name, [])]
    return known if len(known) == count else list(range(count))


def expert_worth(run: Run) -> str:
    """What is lost without each expert, and what kinds of tokens it reads; the first model's in the open."""
    drawn = {
        name: found
        for name, layers in run.experts.items()
        if (found := experts.losses(name, layers) + experts.kinds(name, layers))
    }
    if not drawn:
        return ""
    first, *others = drawn
    folded = [
        f"<details><summary>The same for {words(name)}</summary>{drawn[name]}</details>" for name in others
    ]
    return "<h3>What each expert is worth</h3>" + drawn[first] + "".join(folded)


def expert_tokens(run: Run) -> str:
    if not run.experts:
        return missing("The count of which token goes to which expert")
    note = (
        "Tokens of held-out text that are most characteristic of each expert; behind each the part of its "
        "occurrences that went there. A dot stands for a space, an arrow for a line end."
    )
    return f'<h3>Which tokens go to which expert</h3><p class="note">{note}</p>' + "".join(
        member_tokens(name, layers, opened=i == 0) for i, (name, layers) in enumerate(run.experts.items())
    )


def member_tokens(name: str, layers: list[dict[str, Any]], opened: bool) -> str:
    parts = []
    for i in spaced(len(layers), LAYERS_SHOWN):
        rows = [
            [str(expert["expert"]), f"{expert['share']:.1%}", "".join(map(token, expert["tokens"]))]
            for expert in layers[i]["experts"]
        ]
        found = table(["expert", "share", "tokens"], rows, numbers={1})
        state = " open" if opened and i == 0 else ""
        title = f"{words(name)}, layer {layers[i]['layer']}"
        parts.append(f"<details{state}><summary>{title}</summary>{found}</details>")
    return "".join(parts)


def token(facts: Sequence[Any]) -> str:
    shown, fraction, occurrences = facts
    visible = shown.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
    title = f"{occurrences:,} occurrences"
    return f'<span class="token" title="{title}"><code>{words(visible)}</code> {fraction:.0%}</span> '


# -------------------------------------------------------------------------------------------- to do it all
# again


def data(run: Run) -> str:
    """Documents in = kept + dropped, source by source."""
    if not run.data:
        return missing("Preparing the data")
    if "sources" not in run.data:
        return facts_table(run.data, "What was read, kept and dropped.")
    rows = [source_row(name, part) for name, part in run.data["sources"].items()]
    notes = "".join(f'<p class="note">{words(note)}</p>' for note in run.data.get("notes", []))
    head = ["source", "documents in", "kept", "training tokens", "held-out documents"]
    return f'<div class="scroll">{table(head, rows, numbers=range(1, len(head)))}</div>{notes}'


def source_row(name: str, part: dict[str, Any]) -> list[str]:
    documents = part["documents"]
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in documents["dropped"].items())
    licences = ", ".join(part.get("licences", {}))
    said = [words(name)]
    said += [f"<small>dropped: {words(dropped)}</small>"] if dropped else []
    said += [f"<small>licence: {words(licences)}</small>"] if licences else []
    numbers = (documents["in"], documents["kept"], part["train"]["tokens"], part["held_out"]["documents"])
    return ["".join(said), *(f"{number:,}" for number in numbers)]


def recipe(run: Run) -> str:
    """recipe.toml as a table: key, value and, where the value was derived, the reason."""
    if not run.recipe:
        return missing("The recipe")
    rows = [row for line in run.recipe.splitlines() if (row := recipe_row(line))]
    return f'<div class="scroll">{table(["key", "value", "why"], rows)}</div>'


def recipe_row(line: str) -> list[str] | None:
    if not line.strip() or line.startswith("#"):
        return None
    if heading := re.fullmatch(r"\s*\[+(.+?)\]+\s*", line):
        return [words(heading[1])]
    setting, _, reason = line.partition("  # ")
    key, _, value = setting.partition(" = ")
    return [words(key), f"<code>{words(value)}</code>", words(reason.removeprefix("derived: "))]


def times(run: Run) -> str:
    seconds = {name: s["seconds"] for name, s in run.stages.items() if is_number(s.get("seconds"))}
    if not seconds:
        return missing("Timing of the stages")
    total = human_duration(sum(seconds.values()))
    return figure(lambda width: pictures.stage_times(seconds, width), f"Time of each stage; {total} in all.")


def record(run: Run) -> str:
    if not run.record:
        return missing("The record")
    facts = {key: value for key, value in run.record.items() if key != "intent"}  # the recipe says it
    return facts_table(facts, "Where and with what this was made.")


def facts_table(facts: dict[str, Any], caption: str) -> str:
    rows = [[words(key), words(value)] for key, value in flatten(facts)]
    return f'<div class="scroll">{table(["fact", "value"], rows, caption=caption)}</div>'


def flatten(facts: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (key, value) lines: {"a": {"b": 1}} is [("a b", "1")]."""
    if isinstance(facts, dict):
        return [pair for key, value in facts.items() for pair in flatten(value, f"{prefix} {key}".strip())]
    if isinstance(facts, list) and any(isinstance(value, dict | list) for value in facts):
        return [pair for i, value in enumerate(facts) for pair in flatten(value, f"{prefix} {i + 1}".strip())]
    if isinstance(facts, list):
        return [(prefix, ", ".join(map(str, facts)))]
    return [(prefix, f"{facts:,}" if isinstance(facts, int) and not isinstance(facts, bool) else str(facts))]
