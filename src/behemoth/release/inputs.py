"""What a run's models were made from: every source, conversation, prompt, pair and imported weight, with its licence.

Read from the run's files: the report of the prepared data, the records of each stage, and the recipe, which says where
a text may lie beside what was read. What a person must add lies in the run: RUN/licences/NAME/ is a folder for one
input, with its LICENSE or NOTICE, and a file SPDX with the licence's identifier where the data does not say it (it
replaces "unknown" and nothing else).

What our own tasks made needs no licence. A row is such by three things together: its id begins with the name of a task
of ours that the recipe practises, it names that task's source, and it has the licence of what asks for nothing.
Leaves out: rows of somebody's file that take on all three; licences of single files within a source; terms of service.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from behemoth.base.config import load_toml
from behemoth.base.files import expanded, read_json, read_jsonl
from behemoth.base.units import some
from behemoth.data.licences import KEPT, is_licence, texts_beside
from behemoth.release.evidence import LICENCES
from behemoth.release.licences import OURS, STATED, TEXTLESS, TEXTS, UNKNOWN, folder_name
from behemoth.release.provenance import POST_TRAINING
from behemoth.tasks import suite as suites
from behemoth.tasks.task import Task

MAKERS = ("arithmetic", "functions")  # kinds of a suite's tasks that make their own problems
MOST_ENTRIES = 20  # of one stage and licence; more are told together
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)


@dataclass(frozen=True)
class Input:
    """Something that a model learnt from, or began with. documents: None of weights and tokenizers."""

    name: str
    stage: str
    licence: str
    documents: int | None = None
    origin: str = ""  # in words of the source's own
    made_here: bool = False
    texts: tuple[Path, ...] = ()


def inputs_of(run: Path, member: str | None = None) -> list[Input]:
    """Every input of a run, in the order in which the stages read them. member: of what led to this model alone."""
    recipe = load_toml(run / "recipe.toml") if (run / "recipe.toml").is_file() else {}
    shelf = Shelf.of(run, recipe)
    learnt = [
        *_rows("sft", run / "sft" / "data" / "records.jsonl", shelf),
        *_practised(run, recipe, shelf),
        *_rows("dpo", run / "dpo" / "pairs.jsonl", shelf),
    ]
    begun = [_stated(run, each) for each in _begun_with(run, recipe)]
    found = [*begun, *_pretraining(run), *(_stated(run, each) for each in learnt)]
    later = POST_TRAINING if member not in POST_TRAINING else POST_TRAINING[POST_TRAINING.index(member) + 1 :]
    return [each for each in found if member is None or each.stage not in later]


def _stated(run: Path, each: Input) -> Input:
    """The same, with what a person has laid into RUN/licences/NAME/."""
    said = run / TEXTS / folder_name(each.name) / STATED
    if each.licence == UNKNOWN and said.is_file():
        each = replace(each, licence=said.read_text(encoding="utf-8").strip() or UNKNOWN)
    return replace(each, texts=(*each.texts, *given(run, each.name)))


def given(run: Path, name: str) -> list[Path]:
    return sorted(path for path in (run / TEXTS / folder_name(name)).glob("*") if is_licence(path))


@dataclass(frozen=True)
class Shelf:
    """Where the texts for what a recipe names lie: by path, by a file's stem, by a task's name."""

    places: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)  # practised, of suites
    ours: Mapping[str, str] = field(
        default_factory=dict
    )  # tasks that make their own problems: what they name as source
    corpus: tuple[Input, ...] = ()  # the pretraining text, where conversations are made from it

    @staticmethod
    def of(run: Path, recipe: Mapping[str, Any]) -> Shelf:
        places: dict[str, tuple[Path, ...]] = {}
        tasks: dict[str, Task] = {}
        ours = {
            entry.get("name", "arithmetic"): "generated"
            for entry in recipe.get("assistant", {}).get("practice", [])
            if entry["kind"] == "arithmetic"
        }
        for entry in [
            *recipe.get("sft", {}).get("conversations", []),
            *recipe.get("dpo", {}).get("pairs", []),
        ]:
            if entry.get("path"):
                _shelve(places, Path(entry["path"]))
        for task, path, made in _practice(recipe):
            tasks[task.name] = task
            places[task.name] = tuple(texts_beside(path)) if path else ()
            if made:
                ours[task.name] = task.source
        made = any(entry["kind"] == "code" for entry in recipe.get("sft", {}).get("conversations", []))
        return Shelf(places, tasks, ours, tuple(_pretraining(run)) if made else ())

    def key(self, record: Mapping[str, Any]) -> str:
        """What of the recipe a row came from, as far as its source and its id tell; "" where they do not."""
        source, name = str(record.get("source")), str(record.get("id"))
        wanted = (source, source.removeprefix("graded "), name.split("/")[0], name.split(":")[0])
        return next((key for key in wanted if key in self.places), "")

    def made_here(self, record: Mapping[str, Any]) -> bool:
        task, licence = str(record.get("id")).split("/")[0], record.get("licence")
        source = self.ours.get(task)
        return (
            source is not None and licence in TEXTLESS and record.get("source") in (source, f"graded {task}")
        )

    def texts(self, key: str) -> tuple[Path, ...]:
        """A row that does not say where it came from has a text only where every place has some."""
        return self.places[key] if key else _all_or_none(self.places.values())


def _all_or_none(texts: Iterable[tuple[Path, ...]]) -> tuple[Path, ...]:
    found = list(texts)
    return tuple(dict.fromkeys(path for each in found for path in each)) if all(found) else ()


def _shelve(places: dict[str, tuple[Path, ...]], path: Path) -> None:
    texts = tuple(texts_beside(path))
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    for key in (str(path), path.name, *(file.name.split(".")[0] for file in files)):
        places[key] = texts


def _practice(recipe: Mapping[str, Any]) -> Iterator[tuple[Task, Path | None, bool]]:
    """Every task of the suites that are practised, its file, and whether it makes its problems itself. What lies
    there no more is not told of."""
    for practised in recipe.get("assistant", {}).get("practice", []):
        path = Path(practised.get("path", ""))
        if practised["kind"] != "suite" or not path.is_file():
            continue
        tasks, written = suites.load(path, split="train").tasks, load_toml(path).get("tasks", [])
        for task, entry in zip(tasks, written, strict=True):  # a suite gives a task for each of its tables
            text = entry.get("path")
            place = path.parent / expanded(text) if text else None
            yield task, place, entry["kind"] in MAKERS


def _pretraining(run: Path) -> Iterator[Input]:
    path = run / "data" / "report.json"
    for name, part in read_json(path)["sources"].items() if path.is_file() else ():
        texts = tuple(sorted(path for path in (run / "data" / KEPT / name).rglob("*") if path.is_file()))
        for licence, count in part["licences"].items():
            origin = some(list(part.get("origins", {})))
            yield _stated(run, Input(name, "pretrain", licence, count, origin, texts=texts))


def _rows(stage: str, path: Path, shelf: Shelf) -> Iterator[Input]:
    """The conversations, or the pairs, by where they came from and under which licence."""
    counts: Counter[tuple[str, str, str]] = Counter()
    own: Counter[tuple[str, str]] = Counter()
    for record in read_jsonl(path):
        source, licence = (str(record.get(key) or UNKNOWN) for key in ("source", "licence"))
        if shelf.made_here(record):
            own[source, licence] += 1
        else:
            counts[(source, licence, shelf.key(record))] += 1
    for (source, licence), count in own.items():
        yield Input(source, stage, licence, count, made_here=True)
    for (source, licence, key), count in _few(counts):
        name = Path(source).name or source  # a path is nobody else's business
        if source == "code" and shelf.corpus:  # any of them may be of any of the text
            for each in dict.fromkeys(text.licence for text in shelf.corpus):
                texts = _all_or_none(text.texts for text in shelf.corpus if text.licence == each)
                yield Input(name, stage, each, count, texts=texts)
        else:
            yield Input(name, stage, licence, count, texts=shelf.texts(key))


def _few(counts: Counter[tuple[str, str, str]]) -> Iterator[tuple[tuple[str, str, str], int]]:
    """Entry by entry; where a file names a source for every row, those of one licence and place together."""
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for (source, licence, key), count in counts.items():
        groups.setdefault((licence, key), {})[source] = count
    for (licence, key), sources in groups.items():
        if len(sources) <= MOST_ENTRIES:
            yield from (((source, licence, key), count) for source, count in sources.items())
        else:
            yield (some(list(sources)), licence, key), sum(sources.values())


def _practised(run: Path, recipe: Mapping[str, Any], shelf: Shelf) -> Iterator[Input]:
    """The tasks whose prompts reinforcement learning puts to the policy; how many of them it drew is not kept."""
    if not (run / "rl").is_dir():
        return
    for entry in recipe.get("assistant", {}).get("practice", []):
        if entry["kind"] == "arithmetic":
            yield Input(entry.get("name", entry["kind"]), "rl", "CC0-1.0", made_here=True)
        elif not Path(entry["path"]).is_file():
            yield Input(Path(entry["path"]).stem, "rl", UNKNOWN)
    for name, task in shelf.tasks.items():
        here = name in shelf.ours and task.licence in TEXTLESS
        yield Input(name, "rl", task.licence, made_here=here, texts=shelf.places[name])


# --- weights and tokenizers of somebody's -------------------------------------------------------------------


def _begun_with(run: Path, recipe: Mapping[str, Any]) -> Iterator[Input]:
    """Imported weights and an imported tokenizer; weights of a run or a bundle of ours bring its inputs along."""
    spec = recipe.get("model", {}).get("path") or _imported_from(run)
    if spec:
        yield from _weights(str(spec))
    if given := recipe.get("tokenizer", {}).get("path"):
        place = Path(given)
        yield _theirs(place if place.is_dir() else place.parent, "tokenizer")


def _imported_from(run: Path) -> str | None:
    path = run / "record.json"
    return read_json(path).get("imported_from") if path.is_file() else None


def _weights(spec: str) -> Iterator[Input]:
    place = Path(spec) if Path(spec).exists() else Path(spec.rpartition(":")[0] or spec)
    bundle = place / "release" / "evidence"
    if (bundle / LICENCES).is_file():
        yield _theirs(place, "weights")
        for entry in read_json(bundle / LICENCES)["inputs"]:
            texts = tuple(bundle / TEXTS / Path(name).name for name in entry.pop("texts"))
            yield Input(**entry | {"stage": f"{entry['stage']} of {place.name}"}, texts=texts)
        return
    ours = next((p for p in (place, *place.resolve().parents) if (p / "record.json").is_file()), None)
    if ours is None:
        yield _theirs(place, "weights")
        return
    yield from (replace(each, stage=f"{each.stage} of {ours.name}") for each in inputs_of(ours))


def _theirs(place: Path, stage: str) -> Input:
    """A Hugging Face directory: its card says the licence, and a LICENSE lies beside the weights."""
    return Input(
        place.name, stage, card_licence(place), texts=tuple(texts_beside(place)) if place.is_dir() else ()
    )


def card_licence(directory: Path) -> str:
    """What the metadata of its README.md says, as an SPDX identifier where it is one that `RULES` or we know."""
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    block = FRONT_MATTER.match(text)
    lines = re.findall(
        r"^(license(?:_name)?):[ \t]*[\"']?([^\s\"'#]+)", block[1] if block else "", re.MULTILINE
    )
    said: dict[str, str] = dict(lines)
    name = said.get("license", "")
    name = said.get("license_name", name) if name == "other" else name
    known = {each.casefold(): each for each in (OURS, "MIT", "PSF-2.0", *TEXTLESS)}
    upper = name.upper() if name.startswith(("cc-", "cc0-", "bsd-", "gpl-", "agpl-")) else name
    return known.get(name.casefold(), upper) or UNKNOWN
