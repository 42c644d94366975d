"""Was this text in the training data? An index of the eight consecutive words (8-grams) of every document.

A word is a run of letters, digits and the marks on them, in lower case and compatibility form (NFKC); what lies
between is ignored, so other punctuation, line breaks and quotation marks hide nothing, and code is compared by
its names and numbers. Scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) count each
character as a word. Eight is the length that ConTAM (Singh et al. 2024, 2411.03923) found best: longer ones miss.

Of two neighbouring 8-grams only the one with the smaller hash is kept (winnowing, Schleimer et al. 2003), on both
sides: whatever shares nine words with a document still shares a kept 8-gram with it. That is two thirds of them.
On disk: eight bytes each (a hash, and the document it is from, at most 16 of them), sorted, mapped into memory
when read: 0.93 bytes per byte of English, where the token shards need about 0.6. Keeping the smallest of four
would need three fifths of that, and finds edited passages as well; but of items of 13 and 14 words, planted as they
are, 12 words are then recognised in 35%, here in 89%.

The verdict follows Llama 3 (2407.21783, section 5.1.4): the share of an item's words inside known 8-grams.

    dirty         at least half of the words are known, and 12 words or more
    partly dirty  less, but a fifth of them (12 or more), or half of a shorter text, or 40 words in a row (gaps of
                  up to 8, which an edit leaves, do not count as an end); here an 8-gram of 16 documents of one
                  stage is common text (licences, headers, templates) and says nothing
    too short     fewer than nine words: nothing can be looked up
    clean         the rest; chance overlaps of real exam questions reached 12 words and a fifth of an item

Measured by tests/data/test_overlap_rates.py on 69 MB of books and technical documents: of passages of 50 words
and more, planted in training documents, 989 of 989 were dirty, and with 5% of their words edited 995 of 995. Of
3,888 documents and passages that were planted nowhere 1.6% were flagged (0.2% dirty): 1.2% truly share 20 words
in a row with one training document (licence texts, lists of links, quotations), 0.4% do not. Of 12,407 items of
six benchmarks none was flagged. 100 MB take 10 s of one core and 120 MB of memory; preparing a corpus takes 8%
more processor time than without.

The hash of a gram keeps 44 bits: among ten thousand million grams one in two thousand unknown ones is taken for
known, and no verdict follows from a single one.

A run has an index for each stage that read text (`indexed`): the corpus of pretraining; the conversations of
fine-tuning and the pairs of preferences, questions and answers as one text; the prompts of reinforcement learning
with their worked answers. Left out: what the policy wrote itself and was rewarded for; what is looked at between
steps and never learnt; paraphrase and translation, which share no eight words; and text that runs across the border
of two passages of one long document.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.files import publish_directory, remove_tree, verify_manifest, write_manifest
from behemoth.base.logs import progress
from behemoth.base.mixing import mix
from behemoth.data.sources import Document

INDEX = "_overlap"  # a directory of the corpus; no source can have this name
POST_TRAINING = ("sft", "rl", "dpo")  # stages of a run, each with what it read in RUN/STAGE/data
GRAM = 8  # words
SHORTEST = GRAM + 1  # words of a text that can be looked up: two neighbouring grams
MOST_DOCUMENTS = 16  # of one gram; in as many it is common text
DIRTY, PARTLY = 0.5, 0.2  # shares of the words
LEAST_WORDS = 12
LONG_RUN, BRIDGE = 40, 8  # words
SHOWN = 20  # documents of one verdict

SEPARATOR, LETTER, MARK, ALONE = range(4)
LAST = 0x1FFFF  # of the table of characters; beyond lie rare Chinese ones
WITHOUT_SPACES = (  # Thai and Lao, Burmese, Khmer, kana and the rest: first and last code point
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x31FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
)
PARTITIONS = 256  # of the grams while they are collected, by their first 8 bits; one at a time is sorted
BUCKETS = 4096  # of the finished index, by their first 12 bits; the next 32 are in the file
AT_ONCE = 1 << 18  # characters hashed together
SPILL = 1 << 20  # grams held in memory
ENTRY = np.dtype([("gram", "<u8"), ("document", "<u4")])

_BASE = np.uint64(0x9E3779B97F4A7C15)
_POWERS = np.cumprod(np.full(4096, _BASE, dtype=np.uint64))

Verdict = Literal["clean", "partly dirty", "dirty", "too short"]


# --- words and grams ----------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words of a text, one at a time: what is compared, and what a person is shown of it."""
    found: list[str] = []
    before = SEPARATOR
    for character in _normal(text):
        kind = int(_kinds()[min(ord(character), LAST)])
        if (
            kind == ALONE
            or (kind != SEPARATOR and before == SEPARATOR)
            or (kind == LETTER and before == ALONE)
        ):
            found.append(character)
        elif kind != SEPARATOR:
            found[-1] += character
        before = kind
    return found


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit hash of every word of all texts, end to end, and how many words each text has: `words`, but fast."""
    normal = [_normal(text) for text in texts]
    joined = "\n".join([*normal, ""])
    codes, kinds = _characters(joined)
    before = np.concatenate([np.zeros(1, np.uint8), kinds[:-1]])  # SEPARATOR
    begins = (kinds != SEPARATOR) & (before == SEPARATOR) | (kinds == LETTER) & (before == ALONE)
    starts = np.flatnonzero(begins | (kinds == ALONE))
    ends = np.cumsum([len(text) + 1 for text in normal])
    num_words = np.diff(np.searchsorted(starts, ends), prepend=0)
    if not len(starts):
        return np.zeros(0, np.uint64), num_words
    first = int(starts[0])
    codes, kinds, starts = codes[first:], kinds[first:], starts - first
    letters = np.cumsum(
        kinds != SEPARATOR
    )  # a character's place in its word does not count what lies between
    place = letters - np.repeat(letters[starts], np.diff(starts, append=len(codes)))
    values = (codes + np.uint64(1)) * _POWERS[place % len(_POWERS)]
    values[kinds == SEPARATOR] = 0
    return mix(np.add.reduceat(values, starts)), num_words


def _normal(text: str) -> str:
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def _characters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Code point and kind of every character."""
    if text.isascii():
        codes = np.frombuffer(text.encode(), dtype=np.uint8)
        return codes, _kinds()[codes]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return codes, _kinds()[np.minimum(codes, LAST)]


@cache
def _kinds() -> np.ndarray:
    """What each character is to a word: a table by code point."""
    categories = (unicodedata.category(chr(code))[0] for code in range(LAST))
    kinds = np.array([{"L": LETTER, "N": LETTER, "M": MARK}.get(c, SEPARATOR) for c in categories], np.uint8)
    for first, last in WITHOUT_SPACES:
        part = kinds[first : last + 1]
        part[part == LETTER] = ALONE
    kinds[0xFE00:0xFE10] = SEPARATOR  # marks that choose how an emoji is drawn
    return np.append(kinds, np.uint8(ALONE))


def _grams(hashes: np.ndarray) -> np.ndarray:
    """A hash of the eight words that begin at each word; the last seven begin none."""
    total = np.zeros(max(len(hashes) - GRAM + 1, 0), np.uint64)
    for k in range(GRAM):
        total = total * _BASE + hashes[k : len(total) + k]
    return mix(total)


def _kept(grams: np.ndarray, text_of: np.ndarray) -> np.ndarray:
    """Which grams are kept: the smaller of each two neighbours in a text, and one that is alone in its text."""
    second = grams[1:] < grams[:-1]
    neighbours = text_of[1:] == text_of[:-1]
    kept, paired = np.zeros(len(grams), bool), np.zeros(len(grams), bool)
    kept[1:] |= second & neighbours
    kept[:-1] |= ~second & neighbours
    paired[1:] |= neighbours
    paired[:-1] |= neighbours
    return kept | ~paired


def kept_grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The kept grams of all texts: hash, number of the text, number of the first word in it; and words per text."""
    hashes, num_words = word_hashes(texts)
    text_of = np.repeat(np.arange(len(texts)), num_words)
    place = np.arange(len(hashes)) - np.repeat(np.cumsum(num_words) - num_words, num_words)
    grams = _grams(hashes)
    whole = text_of[: len(grams)] == text_of[len(hashes) - len(grams) :]  # not across the border of two texts
    grams, text_of, place = grams[whole], text_of[: len(whole)][whole], place[: len(whole)][whole]
    kept = _kept(grams, text_of)
    return grams[kept], text_of[kept], place[kept], num_words


# --- building -----------------------------------------------------------------------------------------------


class OverlapWriter:
    """Collect the grams of documents; `finish` leaves a sorted index in `directory`.

    Memory: a million grams, and then one of 256 parts of all of them, so that 100 GB of text need about 2 GB.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._spool = directory / "spool"
        self._spool.mkdir(parents=True)
        self._names = open(directory / "documents.jsonl", "w", encoding="utf-8")  # noqa: SIM115, see finish
        self._held: list[np.ndarray] = []
        self._num_held, self._documents = 0, 0

    def __enter__(self) -> OverlapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._names.close()
        if kind is None:
            self._finish()

    def add(self, documents: Sequence[Document]) -> None:
        ends = np.cumsum([0, *(len(document.text) for document in documents)])
        borders = np.flatnonzero(np.diff(ends // AT_ONCE)) + 1
        for first, last in pairwise([0, *borders.tolist(), len(documents)]):
            if first < last:
                self._add(documents[first:last])

    def _add(self, documents: Sequence[Document]) -> None:
        grams, number, _, _ = kept_grams([document.text for document in documents])
        entries = np.empty(len(grams), ENTRY)
        entries["gram"], entries["document"] = grams, number + self._documents
        self._held.append(entries)
        self._num_held += len(entries)
        self._documents += len(documents)
        for document in documents:
            record = {"id": document.id, "source": document.source, "licence": document.licence}
            self._names.write(json.dumps(record, ensure_ascii=False) + "\n")
        if self._num_held >= SPILL:
            self._spill()

    def _spill(self) -> None:
        entries = np.concatenate([np.empty(0, ENTRY), *self._held])
        part = (entries["gram"] >> np.uint64(56)).astype(np.uint8)
        entries = entries[np.argsort(part, kind="stable")]
        ends = np.cumsum(np.bincount(part, minlength=PARTITIONS))
        for number, piece in enumerate(np.split(entries, ends[:-1])):
            if len(piece):
                with open(self._spool / f"{number:03d}", "ab") as file:
                    file.write(piece.tobytes())
        self._held, self._num_held = [], 0

    def _finish(self) -> None:
        self._spill()
        counts = np.zeros(BUCKETS, np.int64)
        with (
            open(self.directory / "hashes.bin", "wb") as hashes,
            open(self.directory / "documents.bin", "wb") as documents,
            progress("sorting the overlap index", total=PARTITIONS) as advance,
        ):
            for number in range(PARTITIONS):
                path = self._spool / f"{number:03d}"
                if path.exists():
                    entries = _sorted(np.fromfile(path, ENTRY))
                    bucket, suffix = _address(entries["gram"])
                    counts += np.bincount(bucket, minlength=BUCKETS)
                    hashes.write(suffix.astype("<u4").tobytes())
                    documents.write(entries["document"].tobytes())
                    path.unlink()
                advance(1)
        np.save(self.directory / "buckets.npy", np.concatenate([[0], np.cumsum(counts)]))
        remove_tree(self._spool)


def write_index(directory: Path, documents: Iterable[Document]) -> None:
    """Make `directory` hold an index of these documents and nothing else; it is there whole or not at all."""
    partial = directory.with_name(f".{directory.name}.partial")
    remove_tree(partial)
    try:
        with OverlapWriter(partial / INDEX) as index:
            index.add(list(documents))
        write_manifest(partial)
        publish_directory(partial, directory)
    finally:
        remove_tree(partial)


def _sorted(entries: np.ndarray) -> np.ndarray:
    """By gram, then by document; each document once per gram, and no more than the first 16 documents."""
    entries = entries[np.argsort(entries["gram"], kind="stable")]  # documents came in order
    gram, document = entries["gram"], entries["document"]
    new = np.ones(len(entries), bool)
    new[1:] = (gram[1:] != gram[:-1]) | (document[1:] != document[:-1])
    entries = entries[new]
    gram = entries["gram"]
    first = np.ones(len(entries), bool)
    first[1:] = gram[1:] != gram[:-1]
    place = np.arange(len(entries))
    rank = place - np.maximum.accumulate(np.where(first, place, 0))
    return entries[rank < MOST_DOCUMENTS]


def _address(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bucket and suffix: the first 12 bits of a gram, and the next 32."""
    return (grams >> np.uint64(52)).astype(np.int64), (grams >> np.uint64(20)).astype(np.int64) & 0xFFFFFFFF


# --- looking up ---------------------------------------------------------------------------------------------


def indexed(run: Path) -> dict[str, Path]:
    """Where the index of each stage of a run lies, as `Overlap.open` takes them; those stages that have one.

    They are all that the run learnt, also where one of its models learnt only the first of it: so whatever is asked
    of several models has the same marks for each.
    """
    places = {"pretrain": run / "data"} | {stage: run / stage / "data" for stage in POST_TRAINING}
    return {stage: place for stage, place in places.items() if (place / INDEX).is_dir()}


def unread(run: Path) -> list[str]:
    """The stages whose text cannot be looked into: of an earlier version, or behind weights that were brought in."""
    known = indexed(run)
    missing = [] if "pretrain" in known and not (run / "import").is_dir() else ["pretrain"]
    return missing + [stage for stage in POST_TRAINING if (run / stage).is_dir() and stage not in known]


@dataclass(frozen=True)
class Match:
    """A training document that holds some of a text; `words` counts how many of the text's words."""

    stage: str
    document: str
    source: str
    licence: str | None
    words: int


@dataclass(frozen=True)
class Found:
    """What training saw of a text. `covered` words of `words` lie in known grams; `share` is of those that could
    be looked up (the first or last word of a text may not be). The longest run of known words, with small gaps,
    begins at word `start` and has `longest`.

    `matches` are the documents that hold most of it, best first, at most 20; `documents` counts all that are
    known, of which each gram remembers 16.
    """

    verdict: Verdict
    words: int
    covered: int
    share: float
    longest: int
    start: int
    matches: tuple[Match, ...] = ()
    documents: int = 0


class Overlap:
    """The indexes of one or several stages of training, by the stage's name."""

    def __init__(self, stages: Mapping[str, _Stage]):
        self._stages = dict(stages)

    @staticmethod
    def open(directories: Mapping[str, Path]) -> Overlap:
        """Open the corpus of each stage (`{"pretrain": RUN/data}`), once the index agrees with its manifest.

        InputError where a corpus has no index, or none is given: an unread stage is never taken for a clean one.
        """
        if not directories:
            raise InputError("no stage of this training has an index of its text; run its data stage again")
        return Overlap({stage: _Stage(_checked(Path(path))) for stage, path in directories.items()})

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self._stages)

    def find(self, text: str, ignore: np.ndarray | None = None) -> Found:
        """Look a text up in every stage. `ignore`: sorted hashes of grams that say nothing about this text."""
        grams, _, place, num_words = kept_grams([text])
        count = int(num_words[0])
        if ignore is not None and len(ignore):
            told = ~np.isin(grams, ignore)
            grams, place = grams[told], place[told]
        if count < SHORTEST or not len(grams):
            return Found("too short", count, 0, 0.0, 0, 0)
        ranges = {stage: index.ranges(grams) for stage, index in self._stages.items()}
        # The most of any stage, not their sum: later stages often read the same items, and copies hide nothing.
        holders = np.max([last - first for first, last in ranges.values()], axis=0)
        known, rare = (
            _cover(place[holders > 0], count),
            _cover(place[(holders > 0) & (holders < MOST_DOCUMENTS)], count),
        )
        num_looked_up = int(_cover(place, count).sum())
        start, longest = _longest_run(known)
        matches = sorted(
            (
                match
                for stage, index in self._stages.items()
                for match in index.matches(stage, place, *ranges[stage])
            ),
            key=lambda match: -match.words,
        )
        return Found(
            _verdict(known, rare, num_looked_up),
            count,
            int(known.sum()),
            float(known.sum() / num_looked_up),
            longest,
            start,
            tuple(matches[:SHOWN]),
            sum(index.num_documents(*ranges[stage]) for stage, index in self._stages.items()),
        )


def _verdict(known: np.ndarray, rare: np.ndarray, num_looked_up: int) -> Verdict:
    covered, covered_rare = int(known.sum()), int(rare.sum())
    if covered >= max(DIRTY * num_looked_up, LEAST_WORDS):
        return "dirty"
    fifth = covered_rare >= max(PARTLY * num_looked_up, LEAST_WORDS)
    half = covered_rare >= DIRTY * num_looked_up
    return "partly dirty" if fifth or half or _longest_run(rare)[1] >= LONG_RUN else "clean"


def _cover(place: np.ndarray, count: int) -> np.ndarray:
    """Which of `count` words lie in a gram that begins at one of `place`."""
    change = np.zeros(count + 1, np.int64)
    np.add.at(change, place, 1)
    np.add.at(change, place + GRAM, -1)
    return np.cumsum(change[:-1]) > 0


def _longest_run(known: np.ndarray) -> tuple[int, int]:
    """First word and length of the longest run of known words; gaps of up to eight are inside."""
    places = np.flatnonzero(known)
    if not len(places):
        return 0, 0
    breaks = np.flatnonzero(np.diff(places) > BRIDGE + 1)
    first = places[np.concatenate([[0], breaks + 1])]
    last = places[np.concatenate([breaks, [len(places) - 1]])]
    best = int((last - first).argmax())
    return int(first[best]), int(last[best] - first[best] + 1)


def _checked(corpus: Path) -> Path:
    if not corpus.is_dir():
        raise InputError(f"{corpus}: no prepared corpus here; run the data stage first")
    if not (corpus / INDEX).is_dir():
        raise InputError(
            f"{corpus}: this corpus has no overlap index (it was prepared by an earlier version), so nothing "
            "can be said about contamination; remove it and run the data stage again"
        )
    verify_manifest(corpus, INDEX)  # the shards, much larger, are not read here
    return corpus / INDEX


class _Stage:
    """The index of one corpus, mapped into memory."""

    def __init__(self, directory: Path):
        self._names = directory / "documents.jsonl"
        self._buckets: np.ndarray = np.load(directory / "buckets.npy")
        self._hashes, self._documents = (
            _mapped(directory / name) for name in ("hashes.bin", "documents.bin")
        )

    def ranges(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of each gram begin and end."""
        bucket, suffix = _address(grams)
        return self._search(bucket, suffix), self._search(bucket, suffix + 1)

    def _search(self, bucket: np.ndarray, suffix: np.ndarray) -> np.ndarray:
        """The first entry of each bucket that is not below `suffix`, by bisection of all at once."""
        low, high = self._buckets[bucket], self._buckets[bucket + 1]
        while (open_ := low < high).any():
            middle = (low + high) // 2
            below = open_.copy()
            below[open_] = self._hashes[middle[open_]] < suffix[open_]
            low, high = np.where(below, middle + 1, low), np.where(open_ & ~below, middle, high)
        return low

    def matches(self, stage: str, place: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[Match]:
        """The documents that hold most words of a text whose grams begin at `place`."""
        document, where = self._holders(place, first, last)
        if not len(document):
            return []
        order = np.lexsort((where, document))
        document, where = document[order], where[order]
        step = np.full(len(where), GRAM)
        same = document[1:] == document[:-1]
        step[:-1][same] = np.minimum(np.diff(where)[same], GRAM)
        numbers, code = np.unique(document, return_inverse=True)
        num_words = np.bincount(code, step).astype(np.int64)
        best = np.argsort(-num_words, kind="stable")[:SHOWN]
        return [
            Match(stage, record["id"], record["source"], record["licence"], int(num_words[i]))
            for i, record in zip(best, map(self._record, numbers[best].tolist()), strict=True)
        ]

    def num_documents(self, first: np.ndarray, last: np.ndarray) -> int:
        return len(np.unique(self._holders(first, first, last)[0]))

    def _holders(
        self, place: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every document of every gram, and the place of the gram."""
        count = last - first
        entry = np.repeat(first, count) + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.asarray(self._documents[entry]), np.repeat(place, count)

    @cached_property
    def _lines(self) -> np.ndarray:
        """Where each line of documents.jsonl ends; 8 bytes a document."""
        content = _mapped(self._names, np.uint8)
        block = 1 << 24
        return np.concatenate(
            [
                np.zeros(1, np.int64),
                *(
                    np.flatnonzero(content[i : i + block] == ord("\n")) + i + 1
                    for i in range(0, len(content), block)
                ),
            ]
        )

    def _record(self, number: int) -> dict[str, Any]:
        begin, end = self._lines[number : number + 2].tolist()
        return json.loads(bytes(_mapped(self._names, np.uint8)[begin:end]))


def _mapped(path: Path, kind: Any = "<u4") -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r")


# --- the passport of a passage ------------------------------------------------------------------------------

QUOTED = 40  # words


@dataclass(frozen=True)
class Passport:
    """Where a passage has been: which documents hold it, under which licence, in which stages of training."""

    found: Found
    stages: tuple[str, ...]  # that were looked into
    quoted: str  # the beginning of the longest known run, as words

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.found.verdict,
            "words": self.found.words,
            "known_words": self.found.covered,
            "share": round(self.found.share, 4),
            "longest_run": self.found.longest,
            "quoted": self.quoted,
            "stages_looked_into": list(self.stages),
            "stages_that_saw_it": sorted({match.stage for match in self.found.matches}),
            "num_documents": self.found.documents,
            "documents": [dict(vars(match)) for match in self.found.matches],
        }

    def __str__(self) -> str:
        found, where = self.found, " and ".join(self.stages)
        if found.verdict == "too short":
            return f"too short: {found.words} words, and nothing below {SHORTEST} can be looked up"
        if not found.covered:
            return (
                f"clean: none of its {found.words:,} words is in a known run of {GRAM}; looked into {where}"
            )
        lines = [
            f"{found.verdict}: {found.covered:,} of {found.words:,} words are in text that training saw "
            f"({found.share:.0%}), the longest run {found.longest:,}; looked into {where}",
            f'  "{self.quoted}{" ..." if found.longest > QUOTED else ""}"',
            f"{found.documents:,} {'document holds' if found.documents == 1 else 'documents hold'} some of it"
            + (f"; the {SHOWN} that hold most" if found.documents > len(found.matches) else ""),
        ]
        lines += [
            f"  {match.stage}: {match.document}, from {match.source}, licence {match.licence or 'unknown'}: "
            f"{match.words:,} words"
            for match in found.matches
        ]
        return "\n".join(lines)


def passport(overlap: Overlap, text: str) -> Passport:
    """Look a passage up for a person; print it, or `as_dict()` it."""
    found = overlap.find(text)
    quoted = words(text)[found.start : found.start + min(found.longest, QUOTED)]
    return Passport(found, overlap.stages, " ".join(quoted))
