"""The rows of a file, whatever it is written in, each with the place a person would look for it.

.jsonl, .json (a list, or an object that holds one), .csv and .tsv, each also as .gz or .zst, and .parquet; a
folder of them is read in the order of the names; a data set of the Hugging Face Hub through its own library. A
row that cannot be read is not skipped: it is handed on with its problem, so that all problems are told at once.
Rows are held in memory whole; what is too large for that is text to be read by `data/sources.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from behemoth.base.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PACKED = "(or .gz, .zst)"
HUB_EXTRA = "pip install 'behemoth-lab[hub]'"


class Wrong(Exception):
    """What is wrong with one row: the field, what was found, and the rule."""


@dataclass(frozen=True)
class Row:
    """One row; the accessors say in words what is missing or of the wrong kind."""

    number: int  # of the line, or of the entry, from 1
    data: Mapping[str, Any] = field(default_factory=dict)
    stem: str = ""  # the file's name without suffixes
    place: str = "line"  # what `number` counts
    problem: str = ""  # why it could not be read
    where: str = ""  # the number, and of several files the name of the one

    @property
    def name(self) -> str:
        return f"{self.stem}:{self.number}"

    def own(self, *fields: str) -> str:
        """The id that the row itself brings, or its place in the file."""
        return next((str(self.data[field]) for field in fields if self.has(field)), self.name)

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def get(self, *names: str) -> Any:
        """The first of these fields that is there."""
        for name in names:
            if self.has(name):
                return self.data[name]
        found = ", ".join(map(str, self.data)) or "nothing"
        raise Wrong(f"{' or '.join(names)}: missing; the row has {found}")

    def text(self, *names: str) -> str:
        value = self.get(*names)
        if not isinstance(value, str) or not value.strip():
            raise Wrong(f"{self._found(names)}: {_short(value)} is not a text; write some words in quotes")
        return value

    def answer(self, *names: str) -> str:
        """A text, or a number as one would write it: 5.0 is 5."""
        value = self.get(*names)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(int(value) if float(value).is_integer() else value)
        return self.text(*names).strip()

    def texts(self, *names: str) -> tuple[str, ...]:
        return strings(self.get(*names), self._found(names))

    def get_list(self, name: str) -> tuple[Any, ...]:
        value = self.get(name)
        if not isinstance(value, list):
            raise Wrong(f"{name}: {_short(value)} is not a list")
        return tuple(value)

    def index(self, name: str, of: Sequence[str]) -> int:
        """A place in a list, counted from 0 (CSV writes it as text)."""
        value = self.get(name)
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(of):
            raise Wrong(f"{name}: {_short(value)} is not one of the choices, which are 0 to {len(of) - 1}")
        return number

    def label(self, name: str, labels: Sequence[str]) -> int:
        """The place of a label such as "B" among the labels."""
        value = str(self.get(name)).strip()
        if value not in labels:
            raise Wrong(f"{name}: {_short(value)} is not one of the labels {', '.join(labels)}")
        return list(labels).index(value)

    def under(self, name: str) -> Row:
        """The object inside a field, as a row of its own."""
        value = self.get(name)
        if not isinstance(value, Mapping):
            raise Wrong(f"{name}: {_short(value)} is not an object with fields")
        return Row(self.number, value, self.stem, self.place)

    def _found(self, names: Sequence[str]) -> str:
        return next(name for name in names if self.has(name))


def strings(value: Any, name: str) -> tuple[str, ...]:
    """A list of texts, or Wrong."""
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(x, str) for x in value)
    ):
        raise Wrong(f"{name}: {_short(value)} is not a list of texts")
    return tuple(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Place:
    """Where rows are: a file or a folder, or a data set of the Hub."""

    path: Path | None = None
    dataset: str = ""
    subset: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        return str(self.path or f"{self.dataset} ({self.subset or 'default'}, {self.split})")

    def rows(self, columns: Sequence[str] = ()) -> list[Row]:
        """All of them, at least one. InputError: nothing is there, or it cannot be read as what it says it is."""
        return file_rows(self.path, columns) if self.path else hub_rows(self.dataset, self.subset, self.split)


# --- files --------------------------------------------------------------------------------------------------


def file_rows(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """The rows of a file, or of every readable file in a folder; `columns` for CSV without a header."""
    if not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        here = f"; {path.parent} holds {', '.join(beside[:12])}" if beside else ""
        raise InputError(f"{path}: no such file or folder{here}")
    files = sorted(p for p in path.iterdir() if _suffix(p) in SUFFIXES) if path.is_dir() else [path]
    several = len(files) > 1
    rows = [
        replace(row, where=f"{row.number} of {file.name}" if several else str(row.number))
        for file in files
        for row in _rows_of(file, columns)
    ]
    if not rows:
        raise InputError(f"{path} is empty; at least one row is needed, in {', '.join(SUFFIXES)} {PACKED}")
    return rows


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix


def _rows_of(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    stem = path.name.split(".")[0]
    match _suffix(path):
        case ".jsonl":
            yield from _json_lines(_read(path), stem)
        case ".json":
            yield from _json(path, _read(path), stem)
        case ".csv":
            yield from _csv(path, _read(path), ",", columns, stem)
        case ".tsv":
            yield from _csv(path, _read(path), "\t", columns, stem)
        case ".parquet":
            yield from _parquet(path, stem)
        case suffix:
            raise InputError(
                f"{path}: {suffix or 'no suffix'} is not read; use {', '.join(SUFFIXES)} {PACKED}"
            )


def _read(path: Path) -> str:
    """The whole text: a cut-short .gz or .zst should fail before anything is believed."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        data = _unpack_zstd(data) if path.suffix == ".zst" else data
        return data.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path}: damaged or cut short {path.suffix}; fetch it again") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _unpack_zstd(data: bytes) -> bytes:
    """Frame by frame: the library's own reader takes a cut-short file for a whole one."""
    import zstandard

    pieces = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            pieces.append(frame.decompress(data))
        except zstandard.ZstdError:
            raise EOFError from None
        if not frame.eof:
            raise EOFError
        data = frame.unused_data
    return b"".join(pieces)


def _json_lines(text: str, stem: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield _row(number, json.loads(line), stem, "line")
            except json.JSONDecodeError as error:
                yield Row(number, stem=stem, problem=f"not valid JSON ({error.msg} at column {error.colno})")
            except (ValueError, RecursionError):
                yield Row(
                    number, stem=stem, problem="not valid JSON (a number too long, or nested too deeply)"
                )


def _json(path: Path, text: str, stem: str) -> Iterator[Row]:
    """A list of objects, an object that holds one such list, or, as some tools write it, an object per line."""
    try:
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _json_lines(text, stem)
            return
        raise InputError(f"{path}: not valid JSON: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be a list of rows") from None
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise InputError(f"{path}: holds {_short(value)}; rows in .json are a list of objects")
    for number, entry in enumerate(value, 1):
        yield _row(number, entry, stem, "entry")


def _row(number: int, value: Any, stem: str, place: str) -> Row:
    if isinstance(value, dict):
        return Row(number, value, stem, place)
    return Row(number, {}, stem, place, f"{_short(value)} is not an object with fields")


def _csv(path: Path, text: str, delimiter: str, columns: Sequence[str], stem: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = list(columns) or next(reader, [])
        while (line := reader.line_num + 1) and (cells := next(reader, None)) is not None:
            if not cells:
                continue
            wrong = f"{len(cells)} columns where {len(header)} belong ({', '.join(header)})"
            problem = wrong if len(cells) != len(header) else ""
            yield Row(line, dict(zip(header, cells, strict=False)), stem, problem=problem)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: not valid {path.suffix} ({error})") from None


def _parquet(path: Path, stem: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(f"{path}: .parquet needs pyarrow; {HUB_EXTRA}") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError):
        raise InputError(f"{path}: damaged or cut short .parquet") from None
    for number, row in enumerate(rows, 1):
        yield Row(number, row, stem, "row")


# --- the Hub ------------------------------------------------------------------------------------------------


def hub_rows(dataset: str, subset: str | None, split: str) -> list[Row]:
    """The rows of a data set of the Hugging Face Hub, or of a folder laid out like one."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(f"a Hub data set needs the datasets library; {HUB_EXTRA}") from None
    load: Callable[..., Any] = datasets.load_dataset
    try:
        rows = load(dataset, subset, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"data set {dataset!r} ({split}) could not be loaded: {error}") from None
    if not len(rows):
        raise InputError(f"data set {dataset!r} ({split}) is empty; at least one row is needed")
    stem = subset or dataset.rpartition("/")[2]
    return [Row(number, row, stem, "row", where=str(number)) for number, row in enumerate(rows, 1)]
