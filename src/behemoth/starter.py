"""A first recipe for a folder of somebody's own text: look at what is there, choose sizes to match, say why.

The choice is for minutes on a laptop: at most four readings of the corpus (more repeats teach little:
Muennighoff et al. 2023) and at most two million tokens. The written file says what the corpus could feed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from behemoth.base.errors import InputError
from behemoth.base.files import write_atomic
from behemoth.base.units import human_bytes, human_count
from behemoth.data.sources import READABLE, files_under, kind_of
from behemoth.recipe import load_recipe, resolve

EXPANSION = {".gz": 3.0, ".zst": 3.5, ".parquet": 2.5}  # bytes of text per byte on disk, roughly
BYTES_PER_TOKEN = 2.6  # with a vocabulary of about two thousand
MOST_READINGS = 4
MOST_TOKENS = 2_000_000


@dataclass(frozen=True)
class Folder:
    """What a folder holds: files by kind, files of no use, and about how much text."""

    kinds: Counter[str]
    ignored: int
    text_bytes: int


def init(directory: Path, out: Path) -> None:
    """Write a commented recipe for `directory` to `out` and print what to type next."""
    if not directory.exists():
        raise InputError(f"{directory}: no such folder; give the folder that holds your text")
    if out.exists():
        raise InputError(f"{out} already exists; choose another name with --out, or remove it")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it first, or choose another place with --out")
    folder = look_at(directory)
    write_atomic(out, write_recipe(directory.resolve(), folder))
    resolve(load_recipe(out), where=str(out))
    print(f"{out}: a recipe for {_describe(folder)}")
    print(f"Next:\n  behemoth explain {out}\n  behemoth run {out}")


def look_at(directory: Path) -> Folder:
    """Count the files of `directory` by kind; InputError if none of them can be read as text."""
    kinds: Counter[str] = Counter()
    ignored, text_bytes = 0, 0.0
    for path in files_under(directory):
        kind, packing = kind_of(path)
        if kind is None:
            ignored += 1
            continue
        kinds["".join(path.suffixes[-2 if packing else -1 :]).lower()] += 1
        text_bytes += path.stat().st_size * EXPANSION.get(packing or path.suffix.lower(), 1.0)
    if not kinds:
        raise InputError(
            f"{directory} holds no text that can be read ({ignored} other files); wanted are {READABLE}"
        )
    return Folder(kinds, ignored, int(text_bytes))


def write_recipe(directory: Path, folder: Folder) -> str:
    """The recipe as text, with a comment beside each choice."""
    corpus = folder.text_bytes / BYTES_PER_TOKEN
    tokens = _round(min(MOST_TOKENS, max(100_000, MOST_READINGS * corpus)))
    size, student, vocab_size = _sizes(folder.text_bytes)
    name = re.sub(r"[^a-z0-9]+", "-", directory.stem.lower()).strip("-") or "mine"
    return f"""\
# Made for {_describe(folder)}.
# Everything left out is derived; `behemoth explain` shows it with the reasons.

name = "{name}"

[[data.sources]]
kind = "files"
path = {json.dumps(str(directory), ensure_ascii=False)}
# licence = "CC-BY-4.0"     # what the text may be used for, kept with every document

[tokenizer]
vocab_size = {vocab_size}           # entries; more of them pay off with more text

[model]
size = "{size}"              # parameters in total
experts = 8

[train]
tokens = {tokens:_}        # about {tokens / max(corpus, 1):.2g} readings of the text, minutes on a laptop
# minutes = 10             # or a budget of time instead of tokens

# Given the time, this much text could feed a model of {human_count(max(corpus / 20, 1))} active parameters.

# [[students]]               # a smaller model that learns in the same run, from the teacher's running average
# name = "student"
# size = "{student}"
"""


def _sizes(text_bytes: int) -> tuple[str, str, int]:
    """Sizes of model and student, and a vocabulary that this much text can fill."""
    if text_bytes < 300_000:
        return "1M", "300K", 512
    if text_bytes < 3_000_000:
        return "2.5M", "700K", 1024
    return ("4.3M", "1.2M", 2048) if text_bytes < 50_000_000 else ("4.8M", "1.5M", 4096)


def _round(number: float) -> int:
    """Two digits that matter."""
    scale = 10 ** (len(str(int(number))) - 2)
    return int(number) // scale * scale


def _describe(folder: Folder) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in folder.kinds.most_common())
    other = f"; {folder.ignored:,} other files are left aside" if folder.ignored else ""
    return f"{kinds} files, about {human_bytes(folder.text_bytes)} of text{other}"
