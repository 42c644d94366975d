"""A run directory: one recipe, and where and with what it was begun.

The recipe is frozen when the run begins, with every derived value; what it says then is what the run does, however
often it is interrupted. Another recipe in the same directory is refused.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, sha256, write_json
from behemoth.data.corpus import Corpus
from behemoth.recipe import Recipe, Resolved, load_recipe, resolve
from behemoth.release.provenance import lock
from behemoth.text.tokenizer import Tokenizer

RECORD, SETTLED = "record.json", "recipe.toml"  # what was asked for, and what it came to
DOCTOR = "doctor.json"  # what the doctor saw


@dataclass
class Run:
    """A run directory and what its recipe resolved to (None until the tokenizer is known)."""

    directory: Path
    recipe: Recipe
    resolved: Resolved | None = None
    doctor: bool = True  # looks before a run of more than an hour, and at every export

    @property
    def settled(self) -> Resolved:
        if self.resolved is None:
            raise InputError(f"{self.directory} has no prepared data yet; run the data stage first")
        return self.resolved

    @property
    def checkpoints(self) -> Path:
        return self.directory / "pretrain" / "checkpoints"

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.directory / "tokenizer")

    def corpus(self) -> Corpus:
        return Corpus.open(self.directory / "data")


def begin(recipe_path: Path, out: Path | None, overrides: list[str]) -> Run:
    """Open or make the run directory. A run is of one recipe: another one is refused, by what differs."""
    recipe = load_recipe(recipe_path, overrides)
    resolve(recipe, where=str(recipe_path))  # every problem that needs no data, now
    directory = directory_of(recipe, out)
    intent, record = recipe.model_dump(mode="json"), directory / RECORD
    if record.exists():
        refuse_another(read_json(record).get("intent"), intent, directory)
    else:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(record, {"intent": intent, **surroundings()})
        except OSError as error:
            raise InputError(f"{directory}: cannot be written ({error.strerror}); choose --out") from None
    job = Run(directory, recipe)
    settled = directory / SETTLED
    if settled.exists():
        frozen = read_json(record).get("recipe_sha256")
        if frozen not in (None, sha256(settled)):
            raise InputError(
                f"{settled} was changed after the run began; copy it and run the copy with another --out"
            )
        job.resolved = resolve(load_recipe(settled), where=str(settled))
    return job


def directory_of(recipe: Recipe, out: Path | None) -> Path:
    """Where its run is, or will be."""
    return out or Path("runs") / recipe.name


def run_of(model: str | Path) -> Path | None:
    """The run directory that a model (a path, or PATH:MEMBER) is or lies in; None where no recipe made it.

    The nearest record.json decides: a model imported into some run's directory is not of that run.
    """
    path = Path(model)
    if not path.exists():
        before = str(model).rpartition(":")[0]
        if not before or not Path(before).exists():  # an endpoint, or on the Hub: it lies nowhere here
            return None
        path = Path(before)
    nearest = next((place for place in (path, *path.resolve().parents) if (place / RECORD).is_file()), None)
    return nearest if nearest and (nearest / SETTLED).is_file() else None


def refuse_another(before: Any, now: Any, directory: Path) -> None:
    if before is None:
        raise InputError(
            f"{directory} was not begun by a recipe (it holds an imported model); choose another --out"
        )
    differing = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    if differing:
        raise InputError(
            f"{directory} was begun with another recipe: {', '.join(sorted(differing))} differ. "
            "Choose another --out, or remove the directory to begin again."
        )


def surroundings() -> dict[str, Any]:
    """Where and with what the run was made."""
    libraries = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    return {
        "begun": now(),
        "behemoth": version("behemoth-lab"),
        "commit": commit(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        "lock": lock(),
        "system": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def commit() -> str:
    """The source's commit, with "-dirty" when it has been changed since; "" outside the project's own checkout."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if not project.exists() or 'name = "behemoth-lab"' not in project.read_text(encoding="utf-8"):
        return ""  # installed: a checkout around it is somebody else's
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else f"{platform.processor()} x {os.cpu_count()}"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
