"""From sources to a corpus on disk, in two passes and bounded memory.

The first pass reads every document once: it notes a checksum, the MinHash signature that finds duplicates,
and keeps an even sample of text for the tokenizer. Between the passes duplicates are chosen for removal, then
documents are held out (those with the smallest seeded hash of their content), and the tokenizer is trained on
sampled text that is neither. The second pass reads again and writes tokens, and beside them an index of the
training documents' 8-grams, by which any text can be asked for later (`data/overlap.py`). Everything is
written beside the final directory, which appears in one step; an interrupted preparation leaves nothing that
could be taken for a corpus.

A corpus of few documents is read as passages, so that enough of them can be held out. Memory: the sample (at
most 32 million characters), one batch of documents, about 100 bytes a document. Torch is not needed and not
imported.
"""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.files import publish_directory, remove_tree, write_json, write_manifest
from behemoth.base.logs import progress, say
from behemoth.base.mixing import mix, mix_keys
from behemoth.base.units import human_bytes, human_count
from behemoth.data import dedup
from behemoth.data.licences import KEPT, keep_licences
from behemoth.data.overlap import INDEX, OverlapWriter
from behemoth.data.shards import ShardReader, ShardWriter
from behemoth.data.sources import LARGEST_DOCUMENT, READABLE, Document, Source, Tally, read, size
from behemoth.text.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 32_000_000  # text the tokenizer learns from
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1_000_000, 1024
LEAST_HELD_OUT = 60  # documents; fewer make intervals too wide to compare models
MOST_HELD_OUT = 0.3  # share of documents, when there are too few for the least
LEAST_PART = 2  # documents: no interval comes from one
FEW_DOCUMENTS = 400  # below this, the least held out would cost more than 15% of the text
PASSAGES_WANTED = 1000
SHORTEST_PASSAGE = 500  # characters
MOST_ORIGINS = 20  # named in the report; a row of a file may name its own


def prepare(
    sources: Sequence[Source],
    directory: Path,
    *,
    tokenizer_directory: Path,
    vocab_size: int,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    held_out: float = 0.1,
) -> dict[str, Any]:
    """Write a corpus to `directory` and its tokenizer to `tokenizer_directory`; return what report.json says.

    With no `tokenizer` one of `vocab_size` ids is trained. `held_out` is the share of documents kept from
    training (at least 60 documents where there are enough). InputError when there are fewer than four to use.
    """
    _check(sources, directory)
    with _beside(directory) as partial:
        survey, passage = _survey_in_passages(sources, partial)
        split = _split(survey, held_out, seed)
        if tokenizer is None:
            with progress("training the tokenizer"):
                tokenizer = Tokenizer.train(survey.sample.texts(split.train), vocab_size)
        _save_tokenizer(tokenizer, tokenizer_directory)
        tallies = _write_shards(sources, survey, split, tokenizer, partial, passage)
        texts = keep_licences(sources, partial / KEPT)
        report = _report(sources, tallies, split, partial, tokenizer, passage, texts)
        write_json(partial / "report.json", report)
        write_manifest(
            partial,
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=tokenizer.sha256,
            seed=seed,
            sources=[{"name": source.name, "weight": source.weight} for source in sources],
        )
        publish_directory(partial, directory)
    for line in describe(report):
        say(line)
    return report


@contextmanager
def _beside(directory: Path) -> Iterator[Path]:
    """An empty directory next to `directory`; whatever was not published from it is gone afterwards."""
    partial = directory.with_name(f".{directory.name}.partial")
    remove_tree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        remove_tree(partial)


def _check(sources: Sequence[Source], directory: Path) -> None:
    names = [source.name for source in sources]
    problems = [
        *(
            f"source name {name!r} may hold letters, digits, . _ and -"
            for name in names
            if not _is_name(name)
        ),
        *(f"source name {name!r} is used {n} times" for name, n in Counter(names).items() if n > 1),
        *(f"source name {name!r} is taken by the licences' texts" for name in names if name == KEPT),
        *(
            f"source {s.name!r} has weight {s.weight}; it must be above 0"
            for s in sources
            if not s.weight > 0
        ),
    ]
    if not sources:
        problems.append("no source is given; name at least one folder of text, or the Python library")
    if directory.exists():
        problems.append(f"{directory} already exists; remove it to prepare the corpus again")
    if problems:
        raise InputError("\n".join(problems))


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None


# --- the first pass -----------------------------------------------------------------------------------------


@dataclass
class Sample:
    """An even sample of texts in bounded memory: those with the smallest hash, as many as fit."""

    limit: int = SAMPLE_CHARACTERS
    held: list[tuple[int, int, str]] = field(default_factory=list)  # hash, number of the document, text
    characters: int = 0
    threshold: int = 1 << 64

    def add(self, number: int, checksum: int, text: str) -> None:
        key = mix_keys(checksum, 7)
        if key >= self.threshold:
            return
        self.held.append((key, number, text))
        self.characters += len(text)
        while self.characters > self.limit:
            self.threshold //= 2
            self.held = [entry for entry in self.held if entry[0] < self.threshold]
            self.characters = sum(len(text) for _, _, text in self.held)

    def texts(self, allowed: np.ndarray) -> Iterator[str]:
        return (text for _, number, text in self.held if allowed[number])


@dataclass
class Survey:
    """What the first pass learnt of every usable document, by its number in reading order."""

    checksums: array[int] = field(default_factory=lambda: array("Q"))
    bytes: array[int] = field(default_factory=lambda: array("q"))
    numbers: list[range] = field(default_factory=list)  # of the documents of each source
    longest: int = 0  # characters
    sample: Sample = field(default_factory=Sample)
    exact: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    near: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @cached_property
    def unique(self) -> np.ndarray:
        """Neither an exact nor a near duplicate of an earlier document; known when the pass is over."""
        return ~(self.exact | self.near)

    def note(self, text: str) -> None:
        data = text.encode()
        checksum = zlib.crc32(data)
        self.sample.add(len(self.checksums), checksum, text)
        self.checksums.append(checksum)
        self.bytes.append(len(data))
        self.longest = max(self.longest, len(text))


def _survey_in_passages(sources: Sequence[Source], partial: Path) -> tuple[Survey, int]:
    """The survey, and the length in characters above which documents were cut."""
    survey = _survey(sources, partial, LARGEST_DOCUMENT)
    unique = survey.unique
    if unique.sum() >= FEW_DOCUMENTS:
        return survey, LARGEST_DOCUMENT
    total = int(np.array(survey.bytes)[unique].sum())
    passage = min(max(total // PASSAGES_WANTED, SHORTEST_PASSAGE), LARGEST_DOCUMENT)
    if survey.longest <= passage:
        return survey, LARGEST_DOCUMENT
    return _survey(sources, partial, passage), passage


def _survey(sources: Sequence[Source], partial: Path, passage: int) -> Survey:
    survey, duplicates = Survey(), dedup.Duplicates(partial)
    tallies = []
    for source in sources:
        tallies.append(Tally())
        first = len(survey.checksums)
        with progress(f"reading {source.name}", total=size(source) or None, unit="B") as advance:
            for batch in _batches(read(source, tallies[-1], advance, passage)):
                duplicates.add([document.text for document in batch])
                for document in batch:
                    survey.note(document.text)
        survey.numbers.append(range(first, len(survey.checksums)))
    survey.exact, survey.near = duplicates.find()
    if not len(survey.checksums):
        raise InputError(_nothing_usable(sources, tallies))
    return survey


def _nothing_usable(sources: Sequence[Source], tallies: Sequence[Tally]) -> str:
    lines = ["the corpus is empty: no document could be used"]
    for source, tally in zip(sources, tallies, strict=True):
        lines.append(f"  {source.name}: {_equation(tally.documents, tally.kept, tally.dropped)}")
        lines += [f"    {reason}: {', '.join(names)}" for reason, names in tally.examples.items()]
    return "\n".join([*lines, f"  readable are {READABLE}, in UTF-8"])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


# --- between the passes -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """Masks over the documents in reading order; duplicates are in neither."""

    train: np.ndarray
    held_out: np.ndarray


def _split(survey: Survey, share: float, seed: int) -> Split:
    """Hold out the documents with the smallest seeded hash of their content."""
    candidates = np.flatnonzero(survey.unique)
    if len(candidates) < 2 * LEAST_PART:
        raise InputError(
            f"too few usable documents after duplicates are removed: {len(candidates)}, of "
            f"{human_bytes(sum(survey.bytes))} in all; at least {2 * LEAST_PART} are needed, {LEAST_PART} to learn "
            f"from and {LEAST_PART} to test on, so give more text"
        )
    salt = np.uint64(mix_keys(seed, 3))
    keys = mix(np.array(survey.checksums, dtype=np.uint64)[candidates] ^ salt)
    chosen = candidates[np.argsort(keys, kind="stable")[: num_held_out(len(candidates), share)]]
    held_out = np.zeros(len(survey.checksums), dtype=bool)
    held_out[chosen] = True
    return Split(survey.unique & ~held_out, held_out)


def num_held_out(documents: int, share: float) -> int:
    """`share` of the documents, at least 60, never more than 30% to reach those 60; two are left on both sides."""
    wanted = max(math.ceil(share * documents), min(LEAST_HELD_OUT, int(MOST_HELD_OUT * documents)))
    return min(max(wanted, LEAST_PART), documents - LEAST_PART)


def _save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    if directory.exists():
        if Tokenizer.load(directory).sha256 != tokenizer.sha256:
            raise InputError(f"{directory} holds another tokenizer; remove it, or choose another directory")
        return
    with _beside(directory) as partial:
        tokenizer.save(partial)
        publish_directory(partial, directory)


# --- the second pass ----------------------------------------------------------------------------------------


def _write_shards(
    sources: Sequence[Source], survey: Survey, split: Split, tokenizer: Tokenizer, partial: Path, passage: int
) -> list[Tally]:
    tallies = [Tally() for _ in sources]
    total = int(np.array(survey.bytes)[survey.unique].sum())
    with (
        OverlapWriter(partial / INDEX) as overlap,
        progress("tokenising", total=total, unit="B") as advance,
    ):
        for source, tally, numbers in zip(sources, tallies, survey.numbers, strict=True):
            with (
                ShardWriter(partial / source.name / "train", tokenizer.vocab_size) as train,
                ShardWriter(partial / source.name / "held_out", tokenizer.vocab_size) as held_out,
            ):
                for batch in _unique_batches(source, numbers, survey, tally, passage):
                    encoded = tokenizer.encode_batch([document.text for _, document in batch])
                    for (number, document), ids in zip(batch, encoded, strict=True):
                        writer = held_out if split.held_out[number] else train
                        whole = [tokenizer.bos_id, *ids, tokenizer.eos_id]
                        writer.append(whole, survey.bytes[number], document)
                        advance(survey.bytes[number])
                    overlap.add([document for number, document in batch if not split.held_out[number]])
    return tallies


def _unique_batches(
    source: Source, numbers: range, survey: Survey, tally: Tally, passage: int
) -> Iterator[list[tuple[int, Document]]]:
    """The documents of a source once more, with their numbers, without duplicates (which the tally counts)."""
    changed = InputError(
        f"source {source.name!r} changed while it was being read; let it settle, then repeat"
    )
    number = numbers.start
    for batch in _batches(read(source, tally, lambda _: None, passage)):
        checksums = [zlib.crc32(document.text.encode()) for document in batch]
        if checksums != survey.checksums[number : number + len(batch)].tolist():
            raise changed
        yield [(n, d) for n, d in enumerate(batch, number) if _keep(n, d, survey, tally)]
        number += len(batch)
    if number != numbers.stop:
        raise changed


def _keep(number: int, document: Document, survey: Survey, tally: Tally) -> bool:
    if survey.exact[number]:
        tally.drop("exact duplicate", document.id)
    elif survey.near[number]:
        tally.drop("near duplicate", document.id)
    return bool(survey.unique[number])


# --- the report ---------------------------------------------------------------------------------------------


def _report(
    sources: Sequence[Source],
    tallies: Sequence[Tally],
    split: Split,
    partial: Path,
    tokenizer: Tokenizer,
    passage: int,
    texts: dict[str, list[str]],
) -> dict[str, Any]:
    parts = {
        source.name: _source_report(source, tally, partial / source.name, tokenizer)
        | {"licence_texts": texts[source.name]}
        for source, tally in zip(sources, tallies, strict=True)
    }
    train, held_out = (_total(part[kind] for part in parts.values()) for kind in ("train", "held_out"))
    return {
        "documents": {
            "in": sum(tally.documents for tally in tallies),
            "kept": sum(tally.kept for tally in tallies),
            "dropped": dict(sum((tally.dropped for tally in tallies), Counter())),
        },
        "train": train,
        "held_out": held_out,
        "bytes_per_token": round(train["bytes"] / max(train["tokens"], 1), 4),
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        "near_duplicates": {
            "similarity": dedup.THRESHOLD,
            "of": f"sets of {dedup.SHINGLE_WORDS} consecutive words",
            "estimated_from": f"MinHash signatures of {dedup.NUM_VALUES} values",
        },
        "passage_characters": passage if passage < LARGEST_DOCUMENT else None,
        "notes": _notes(split, passage),
        "sources": parts,
    }


def _source_report(source: Source, tally: Tally, directory: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    readers = {kind: ShardReader(directory / kind, tokenizer.vocab_size) for kind in ("train", "held_out")}
    licences, origins = Counter[str](), Counter[str]()
    for record in (record for reader in readers.values() for record in reader.records()):
        licences[str(record["licence"] or "unknown")] += 1
        origins[str(record["source"])] += 1
    return {
        "weight": source.weight,
        "documents": {"in": tally.documents, "kept": tally.kept, "dropped": dict(tally.dropped)},
        "dropped_examples": tally.examples,
        "licences": dict(licences),
        "origins": dict(origins.most_common(MOST_ORIGINS)),
        **{
            kind: {"documents": len(reader.lengths), "tokens": reader.num_tokens, "bytes": reader.num_bytes}
            for kind, reader in readers.items()
        },
    }


def _total(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def _notes(split: Split, passage: int) -> list[str]:
    notes = []
    if passage < LARGEST_DOCUMENT:
        notes.append(
            f"fewer than {FEW_DOCUMENTS} documents: texts of more than {passage:,} characters are cut "
            "at paragraph borders into passages, which are counted as documents; passages of one text lie on "
            "both sides, so held-out text is more like the training text than a new document would be"
        )
    if (count := int(split.held_out.sum())) < LEAST_HELD_OUT:
        notes.append(
            f"only {count} documents are held out, fewer than the {LEAST_HELD_OUT} wanted: intervals are wide"
        )
    return notes


def describe(report: dict[str, Any]) -> list[str]:
    """The report in plain words, a line each."""
    documents = report["documents"]
    lines = ["documents: " + _equation(documents["in"], documents["kept"], documents["dropped"])]
    for name, part in report["sources"].items():
        for reason, names in part["dropped_examples"].items():
            count = part["documents"]["dropped"][reason]
            more = f" and {count - len(names):,} more" if count > len(names) else ""
            lines.append(f"  {name}: {reason}: {', '.join(names)}{more}")
    for title, kind in (("training", "train"), ("held out", "held_out")):
        part = report[kind]
        lines.append(
            f"{title}: {part['documents']:,} documents, {human_count(part['tokens'])} tokens, "
            f"{human_bytes(part['bytes'])}"
        )
    return [*lines, *(f"note: {note}" for note in report["notes"])]


def _equation(count: int, kept: int, dropped: dict[str, int]) -> str:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items(), key=lambda item: -item[1]))
    total = sum(dropped.values())
    return f"{count:,} in = {kept:,} kept + {total:,} dropped" + (f" ({reasons})" if reasons else "")
