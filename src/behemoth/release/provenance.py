"""What a model was made from, by what, on what: read from the files of its run, never from the clock.

After SLSA provenance (who, what, from which inputs), with what counts for a model: data by the hash of its manifest,
checkpoints by theirs, the models before it, the seed, the machine. A run does not say which machine or which library
could have changed a number; it says which ones there were. Paths and names of hosts are left out.

Left out: proof. A lab writes its own run directory; signatures say who stands by it. The lock lists what was installed
when the evidence was gathered, unless the run's record holds one of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from behemoth.base.config import load_toml
from behemoth.base.files import MANIFEST, read_json, read_jsonl, sha256, verify_manifest
from behemoth.data.shards import ShardReader
from behemoth.tasks.constraints import Undecidable, language
from behemoth.text.tokenizer import Tokenizer

RECORD, RECIPE, STAGES = "record.json", "recipe.toml", "stages.json"
POST_TRAINING = ("sft", "rl", "dpo")
TEACHER = "teacher"
DIRTY = "-dirty"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
LANGUAGE_DOCUMENTS, LANGUAGE_TOKENS = 60, 400  # read to tell the languages of the training text


def gather(run: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of how `model` ({"member", "sha256"}) came to be. DamagedError: its checkpoint is not whole."""
    record = read_json(run / RECORD) if (run / RECORD).is_file() else {}
    recipe = load_toml(run / RECIPE) if (run / RECIPE).is_file() else {}
    member = str(model.get("member") or model["name"])
    commit = str(record.get("commit") or "")
    lineage = list(lineage_of(run, recipe, member))
    return {
        "format": 1,
        "model": {"member": member, "sha256": model["sha256"]},
        "run": str(recipe.get("name") or run.name),
        "recipe_sha256": sha256(run / RECIPE) if recipe else None,
        "source": {
            "package": "behemoth-lab",
            "version": record.get("behemoth"),
            "commit": commit.removesuffix(DIRTY) or None,
            "dirty": commit.endswith(DIRTY) if commit else None,
        },
        "machine": {
            key: record.get(key)
            for key in ("system", "processor", "threads", "device", "python", "libraries")
        },
        "lock": record.get("lock") or lock() | {"taken": "when the evidence was gathered"},
        "data": data_of(run, member),
        "tokenizer_sha256": _hash(run / "tokenizer" / "tokenizer.json"),
        "checkpoint": lineage[-1] if lineage else None,
        "parents": lineage[:-1],
        "seed": recipe.get("seed"),
        "determinism": {
            "data_order": "a function of the seed and the step",
            "kernels": "not forced to be deterministic",
        },
        "precision": recipe.get("train", {}).get("precision"),
        "training": list(_training(run, lineage)),
        "hub": hub_of(recipe),
        **_times(run, record, lineage),
    }


def lock() -> dict[str, Any]:
    """Every installed distribution as name==version, sorted, and the hash of these lines."""
    names = {f"{each.metadata['Name']}=={each.version}" for each in distributions() if each.metadata["Name"]}
    lines = sorted(names, key=str.casefold)
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    return {"sha256": digest, "distributions": lines}


# --- the models before it -----------------------------------------------------------------------------------


def lineage_of(run: Path, recipe: Mapping[str, Any], member: str) -> Iterator[dict[str, Any]]:
    """The model's checkpoint last, and before it those that it was made from, the first of them first.

    The model's own weights are hashed; of the others it is told what their manifests say.
    """
    for name, relation in _ancestors(recipe, member):
        newest = _newest(run, name)
        if newest is None:
            continue
        manifest = (
            verify_manifest(newest, f"weights/{name}") if name == member else read_json(newest / MANIFEST)
        )
        prefix = f"weights/{name}/"
        yield {
            "member": name,
            "relation": relation,
            "stage": newest.parent.parent.name,
            "step": manifest.get("step"),
            "manifest_sha256": manifest["sha256"],
            "files": {
                path.removeprefix(prefix): facts["sha256"]
                for path, facts in manifest["files"].items()
                if path.startswith(prefix)
            },
        }


def _ancestors(recipe: Mapping[str, Any], member: str) -> list[tuple[str, str]]:
    """Names of members, and how the next one followed from each."""
    stages = [name for name in POST_TRAINING if name in recipe]
    if member in stages:
        before = stages[: stages.index(member)]
        start = str(recipe.get("assistant", {}).get("start") or TEACHER)
        return [
            *_ancestors(recipe, start)[:-1],
            (start, "further trained"),
            *((name, "further trained") for name in before),
            (member, "this model"),
        ]
    students = {entry.get("name", "student"): entry for entry in recipe.get("students", [])}
    if member in students and students[member].get("soft", 1) > 0:
        return [(TEACHER, "distilled from"), (member, "this model")]
    return [(member, "this model")]


def _newest(run: Path, member: str) -> Path | None:
    saves = [path for path in run.glob("*/checkpoints/step-*") if (path / "weights" / member).is_dir()]
    saves = [path for path in saves if (path / MANIFEST).is_file()]
    return max(saves, key=lambda path: (path.parent.parent.name == member, path.name), default=None)


# --- what it learnt from ------------------------------------------------------------------------------------


def data_of(run: Path, member: str) -> dict[str, Any]:
    """The hash and the size of what each stage read."""
    found: dict[str, Any] = {}
    if (run / "data" / MANIFEST).is_file():
        report = read_json(run / "data" / "report.json")
        found["pretrain"] = {
            "manifest_sha256": read_json(run / "data" / MANIFEST)["sha256"],
            "train": report["train"],
            "held_out": report["held_out"],
            "languages": languages(run, report),
        }
    reached = POST_TRAINING[: POST_TRAINING.index(member) + 1] if member in POST_TRAINING else ()
    if "sft" in reached and (run / "sft" / "data" / MANIFEST).is_file():
        manifest = read_json(run / "sft" / "data" / MANIFEST)
        found["sft"] = {
            "manifest_sha256": manifest["sha256"],
            "conversations": manifest["kept"],
            "tokens": manifest["tokens"],
        }
    if "dpo" in reached and (run / "dpo" / "pairs.jsonl").is_file():
        pairs = run / "dpo" / "pairs.jsonl"
        found["dpo"] = {"pairs_sha256": sha256(pairs), "pairs": sum(1 for _ in read_jsonl(pairs))}
    return found


def languages(run: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """In which languages the beginnings of a few training documents are, by langdetect; of each, how many."""
    if not (run / "tokenizer" / "tokenizer.json").is_file():
        return {}
    tokenizer = Tokenizer.load(run / "tokenizer")
    counts: Counter[str] = Counter()
    for name, part in report["sources"].items():
        share = part["train"]["documents"] / max(report["train"]["documents"], 1)
        reader = ShardReader(run / "data" / name / "train", tokenizer.vocab_size)
        wanted = min(round(LANGUAGE_DOCUMENTS * share) or 1, len(reader.lengths))
        for place in range(wanted):
            ids = reader.document(place * len(reader.lengths) // wanted)[:LANGUAGE_TOKENS]
            try:
                counts[language(tokenizer.decode(ids.tolist()))] += 1
            except Undecidable:
                counts["unknown"] += 1
    return {"documents": counts.total(), "found": dict(counts.most_common())}


def hub_of(recipe: Mapping[str, Any]) -> dict[str, list[str]]:
    """Data sets and base models that are on the Hub, by their names there; of a local path only its cache tells."""
    entries = [
        *recipe.get("data", {}).get("sources", []),
        *recipe.get("sft", {}).get("conversations", []),
        *recipe.get("dpo", {}).get("pairs", []),
    ]
    named = [str(entry["dataset"]) for entry in entries if entry.get("dataset")]
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+?)/", f"{recipe.get('model', {}).get('path') or ''}/")
    return {
        "datasets": sorted({name for name in named if HUB_NAME.fullmatch(name) and not Path(name).exists()}),
        "base_models": [f"{cached[1]}/{cached[2]}"] if cached else [],
    }


# --- training -----------------------------------------------------------------------------------------------


def _training(run: Path, lineage: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each model in the line: its steps, and in pretraining its tokens (a step of another stage counts what it
    learns from, answers or pairs)."""
    for each in lineage:
        steps = {
            record["step"]: record["tokens"]
            for record in read_jsonl(run / each["stage"] / "metrics.jsonl")
            if each["member"] in record["members"]
        }
        tokens = int(sum(steps.values())) if each["stage"] == "pretrain" else None
        yield {"member": each["member"], "stage": each["stage"], "steps": len(steps), "tokens": tokens}


def _times(run: Path, record: Mapping[str, Any], lineage: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the stages that the model went through, and of no later one."""
    stages = read_json(run / STAGES) if (run / STAGES).is_file() else {}
    through = {"data", *(each["stage"] for each in lineage)}
    made = {name: facts for name, facts in stages.items() if name in through}
    return {
        "begun": record.get("begun"),
        "finished": max((facts["finished"] for facts in made.values() if facts["finished"]), default=None),
        "stages": {name: facts["seconds"] for name, facts in made.items()},
        "seconds": round(sum(facts["seconds"] for facts in made.values()), 2),
    }


def _hash(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None
