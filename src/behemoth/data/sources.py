"""Where documents come from, and what becomes of those that cannot be used.

A source is a small frozen description; `read` turns it into documents, one at a time, in a fixed order. Files
may be .txt .md .py (a document each), .jsonl (a document per line) or .parquet (per row); the first four also
as .gz or .zst. Whatever cannot be read is dropped, named and counted by reason in a `Tally`: documents in =
kept + dropped.

Memory stays bounded: a document of more than a million characters is cut at paragraph borders into passages
(`book#1`, `book#2` ...), while it is being read, and a line of .jsonl that no memory should hold is dropped.
Formats that need a parser (HTML, PDF, Word) are left out.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import platform
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from behemoth.base.errors import InputError

LARGEST_DOCUMENT = 1_000_000  # characters
LONGEST_LINE = 64_000_000  # bytes of a line of .jsonl
BLOCK_BYTES = 1 << 20
EXAMPLES = 5  # named per reason
TEXT_SUFFIXES = (".txt", ".md", ".py")
PACKED_SUFFIXES = ("", ".gz", ".zst")
READABLE = ".txt .md .py .jsonl (plain, .gz or .zst) and .parquet"
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
TEXT_FIELDS = ("text", "content")
BINARY = "binary (NUL bytes)"
BAD_ENCODING = "bad encoding (not UTF-8)"
TOO_LONG = f"line of more than {LONGEST_LINE // 1_000_000} MB"
HUB_EXTRA = "pip install 'behemoth-lab[hub]'"
NO_PYARROW = f".parquet needs pyarrow ({HUB_EXTRA})"

Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Document:
    """A text, its name, where it came from, and its licence if known."""

    text: str
    id: str
    source: str
    licence: str | None


@dataclass(frozen=True)
class PythonSource:
    """The running interpreter's own standard library: real text on every machine, with no network."""

    name: str = "python"
    weight: float = 1.0


@dataclass(frozen=True)
class FilesSource:
    """A file, or every readable file under a folder; `licence` holds where a line does not name its own."""

    path: Path
    name: str = "files"
    weight: float = 1.0
    licence: str | None = None


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face Hub, or a folder laid out like one; downloaded whole before it is read."""

    dataset: str
    name: str = "hub"
    weight: float = 1.0
    licence: str | None = None
    config: str | None = None
    split: str = "train"
    text_field: str = "text"


Source = PythonSource | FilesSource | HubSource


@dataclass
class Tally:
    """What one source gave: documents in = kept + dropped. A file that cannot be read counts as one."""

    documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.documents - self.dropped.total()

    def drop(self, reason: str, name: str) -> None:
        """Count a document that was already counted in, and remember the first few names."""
        self.dropped[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)

    def refuse(self, reason: str, name: str) -> None:
        self.documents += 1
        self.drop(reason, name)


class Unusable(Exception):
    """Why a file, or the rest of it, cannot be read; becomes a reason in the tally."""


def read(
    source: Source, tally: Tally, advance: Advance, passage: int = LARGEST_DOCUMENT
) -> Iterator[Document]:
    """The usable documents of a source, always in the same order; `advance` hears of bytes read from disk.

    A text of more than `passage` characters is cut. InputError when the source does not exist or nothing
    in it is of a kind that can be read.
    """
    for document in cut(_documents(source, tally, advance, passage), passage):
        tally.documents += 1
        if reason := _unfit(document.text):
            tally.drop(reason, document.id)
        else:
            yield document


def size(source: Source) -> int:
    """Bytes on disk that reading the source goes through; 0 when unknown."""
    match source:
        case PythonSource():
            return sum(path.stat().st_size for path in _library())
        case FilesSource():
            return sum(path.stat().st_size for path in files_under(Path(source.path)))
        case HubSource():
            return 0


def _documents(source: Source, tally: Tally, advance: Advance, passage: int) -> Iterator[Document]:
    match source:
        case PythonSource():
            root = Path(sysconfig.get_path("stdlib"))
            origin = f"Python {platform.python_version()} standard library"
            defaults = Document("", "", origin, "PSF-2.0")
            yield from _read_files(_library(), root, defaults, tally, advance, passage)
        case FilesSource():
            path = Path(source.path)
            root = path if path.is_dir() else path.parent
            defaults = Document("", "", source.name, source.licence)
            yield from _read_files(usable_files(path), root, defaults, tally, advance, passage)
        case HubSource():
            yield from _read_hub(source, tally)


def cut(documents: Iterable[Document], passage: int) -> Iterator[Document]:
    """Cut texts of more than `passage` characters at paragraph borders; other documents pass as they are."""
    for document in documents:
        if len(document.text) <= passage:
            yield document
        else:
            for number, text in enumerate(passages(document.text, passage), start=1):
                yield Document(text, f"{document.id}#{number}", document.source, document.licence)


def passages(text: str, passage: int) -> Iterator[str]:
    """Pieces of at most `passage` characters that together are `text`.

    A piece ends after the last empty line of its second half, else the last line, else the last space.
    """
    start = 0
    while len(text) - start > passage:
        end = _border(text, start, start + passage)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _border(text: str, start: int, limit: int) -> int:
    half = start + (limit - start) // 2
    for mark in ("\n\n", "\n", " "):
        if (place := text.rfind(mark, half, limit)) >= 0:
            return place + len(mark)
    return limit


def _unfit(text: str) -> str | None:
    if not text or text.isspace():
        return "empty"
    if "\0" in text:
        return BINARY
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        return "lone surrogate"
    return None


# --- files --------------------------------------------------------------------------------------------------


def _library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in NOT_THE_LIBRARY]  # what is removed is not walked
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise InputError(
            f"{root} holds no .py files: this Python came without its library; give a folder of text"
        )
    return sorted(files)


def files_under(path: Path) -> list[Path]:
    """The file itself, or every file under the folder that is not hidden, sorted by name."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return [path]
    files = (p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts))


def usable_files(path: Path) -> list[Path]:
    """All files under `path`; InputError when not one of them can be read."""
    files = files_under(path)
    kinds = {kind_of(file)[0] for file in files} - {None}
    if not kinds:
        found = ", ".join(sorted({file.suffix or "no suffix" for file in files})[:8]) or "nothing"
        raise InputError(f"{path} holds no file that can be read (found: {found}); readable are {READABLE}")
    if kinds == {"parquet"} and find_spec("pyarrow") is None:
        raise InputError(f"{path} holds no file that can be read: {NO_PYARROW}")
    return files


def kind_of(path: Path) -> tuple[str | None, str]:
    """("text" | "jsonl" | "parquet" | None, compression suffix) by the file's name."""
    packing = path.suffix.lower() if path.suffix.lower() in PACKED_SUFFIXES else ""
    inner = Path(path.stem).suffix.lower() if packing else path.suffix.lower()
    if inner in TEXT_SUFFIXES:
        return "text", packing
    if inner == ".jsonl":
        return "jsonl", packing
    if inner == ".parquet" and not packing:
        return "parquet", packing
    return None, packing


def _read_files(
    files: list[Path], root: Path, defaults: Document, tally: Tally, advance: Advance, passage: int
) -> Iterator[Document]:
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            yield from _read_file(path, name, defaults, tally, advance, passage)
        except Unusable as problem:
            tally.refuse(str(problem), name)


def _read_file(
    path: Path, name: str, defaults: Document, tally: Tally, advance: Advance, passage: int
) -> Iterator[Document]:
    match kind_of(path):
        case "text", packing:
            yield from _read_text(_blocks(path, packing, advance), name, defaults, passage)
        case "jsonl", packing:
            yield from _read_lines(_blocks(path, packing, advance), name, defaults, tally)
        case "parquet", _:
            yield from _read_parquet(path, name, defaults, tally, advance)
        case _:
            advance(path.stat().st_size)
            raise Unusable(f"unknown suffix {path.suffix or '(none)'}")


def _blocks(path: Path, packing: str, advance: Advance) -> Iterator[bytes]:
    """The file's bytes, unpacked, block by block; Unusable when they end early or are damaged."""
    try:
        with open(path, "rb") as file:
            done = 0
            for block in _unpacked(file, packing):
                yield block
                done, before = file.tell(), done
                advance(done - before)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise Unusable("damaged or cut short .gz") from None
    except OSError as error:
        raise Unusable(f"unreadable ({error.strerror})") from None


def _unpacked(file: IO[bytes], packing: str) -> Iterator[bytes]:
    if packing == ".zst":
        yield from _unpack_zstd(file)
        return
    stream = gzip.GzipFile(fileobj=file) if packing == ".gz" else file
    while block := stream.read(BLOCK_BYTES):
        yield block


def _unpack_zstd(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame: the library's own reader takes a cut-short file for a whole one."""
    import zstandard

    try:
        frame = None
        while block := file.read(BLOCK_BYTES // 8):
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError:
        raise Unusable("damaged or cut short .zst") from None
    if frame is not None:
        raise Unusable("damaged or cut short .zst")


def _read_text(blocks: Iterator[bytes], name: str, defaults: Document, passage: int) -> Iterator[Document]:
    """One document, or numbered passages of a long one; only about `LARGEST_DOCUMENT` of it is in memory."""
    held, number = "", 0
    for text in _decoded(blocks):
        held += text
        if len(held) > LARGEST_DOCUMENT:
            *whole, held = passages(held, passage)
            for piece in whole:
                number += 1
                yield Document(piece, f"{name}#{number}", defaults.source, defaults.licence)
    rest = list(passages(held, passage)) or [""]
    alone = number == 0 and len(rest) == 1
    for piece in rest:
        number += 1
        yield Document(piece, name if alone else f"{name}#{number}", defaults.source, defaults.licence)


def _decoded(blocks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        for block in blocks:
            if b"\0" in block:
                raise Unusable(BINARY)
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise Unusable(BAD_ENCODING) from None


def _read_lines(blocks: Iterator[bytes], name: str, defaults: Document, tally: Tally) -> Iterator[Document]:
    for number, line in enumerate(_lines(blocks), start=1):
        place = f"{name}:{number}"
        if line is None:
            tally.refuse(TOO_LONG, place)
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            tally.refuse(BAD_ENCODING, place)
        except (ValueError, RecursionError):
            tally.refuse("malformed line (not JSON)" if line.strip() else "empty", place)
        else:
            yield from _from_record(record, place, defaults, tally)


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
    """The lines; in place of one that is too long to hold, None."""
    held, length = [], 0
    for block in blocks:
        first, *rest = block.split(b"\n")
        held.append(first)
        length += len(first)
        for piece in rest:
            yield b"".join(held) if length <= LONGEST_LINE else None
            held, length = [piece], len(piece)
        if length > LONGEST_LINE:
            held = []
    if length:
        yield b"".join(held) if length <= LONGEST_LINE else None


def _from_record(record: Any, place: str, defaults: Document, tally: Tally) -> Iterator[Document]:
    fields = record if isinstance(record, dict) else {}
    text = next((fields[key] for key in TEXT_FIELDS if isinstance(fields.get(key), str)), None)
    if text is None:
        tally.refuse(f"no text field ({' or '.join(TEXT_FIELDS)})", place)
        return
    licence = fields.get("licence") or fields.get("license") or defaults.licence
    yield Document(
        text,
        str(fields.get("id") or place),
        str(fields.get("source") or defaults.source),
        None if licence is None else str(licence),
    )


def _read_parquet(
    path: Path, name: str, defaults: Document, tally: Tally, advance: Advance
) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise Unusable(NO_PYARROW) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        wanted = {*TEXT_FIELDS, "id", "source", "licence", "license"}
        columns = [column for column in file.schema_arrow.names if column in wanted]
        number = 0
        for rows in file.iter_batches(batch_size=256, columns=columns):
            for record in rows.to_pylist():
                number += 1
                yield from _from_record(record, f"{name}:{number}", defaults, tally)
    except (pyarrow.ArrowException, OSError):
        raise Unusable("damaged or cut short .parquet") from None
    advance(path.stat().st_size)


# --- the Hub ------------------------------------------------------------------------------------------------


def _read_hub(source: HubSource, tally: Tally) -> Iterator[Document]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(f"a Hub data set needs the datasets library; {HUB_EXTRA}") from None
    try:
        rows = datasets.load_dataset(source.dataset, source.config, split=source.split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"data set {source.dataset!r} ({source.split}) could not be loaded: {error}"
        ) from None
    if source.text_field not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise InputError(f"data set {source.dataset!r} has no column {source.text_field!r}; it has {columns}")
    defaults = Document("", "", source.dataset, source.licence)
    for number, row in enumerate(rows, start=1):
        record = {**row, "text": row[source.text_field]}
        yield from _from_record(record, f"{source.dataset}:{number}", defaults, tally)
