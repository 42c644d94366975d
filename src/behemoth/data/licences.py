"""The text of a licence lies beside what it covers; here it is found, and kept with the corpus.

A licence asks for its text and notices to go where the work goes, and of 124,278 chains of data sets and models 96%
have lost it on the way (arXiv 2602.08816). So it is copied when the data is prepared, while it is at hand. Nothing
is fetched, and no text is put in the place of one that is missing.

Leaves out: licence headers inside files, and data sets of the Hub, whose library gives rows alone.
"""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from behemoth.data.sources import FilesSource, HubSource, PythonSource, Source, files_under

KEPT = "licences"  # in a prepared corpus: a folder for each source that has any
LARGEST = 1_000_000  # bytes of a licence's text
NAMES = re.compile(r"(licen[cs]e|copying|copyright)([-_. ].*)?|notices?(\.\w+)?", re.IGNORECASE)
NOT_TEXTS = {".py", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".toml", ".yaml", ".yml", ".gz", ".zst"}


def keep_licences(sources: Sequence[Source], directory: Path) -> dict[str, list[str]]:
    """Copy the texts of each source to `directory`/SOURCE/; the names by source, "/" where folders lay in between."""
    return {source.name: _copy(*_texts_of(source), directory / source.name) for source in sources}


def _texts_of(source: Source) -> tuple[list[Path], Path]:
    match source:
        case PythonSource():
            found = python_licence()
            return ([found], found.parent) if found else ([], Path())
        case FilesSource():
            return texts_beside(source.path), folder_of(source.path)
        case HubSource():
            place = Path(source.dataset)  # a folder laid out like a data set of the Hub
            return (texts_beside(place), folder_of(place)) if place.exists() else ([], Path())


def _copy(texts: Sequence[Path], root: Path, target: Path) -> list[str]:
    names = [path.relative_to(root).as_posix() for path in texts]
    for path, name in zip(texts, names, strict=True):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
    return names


def folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def texts_beside(path: Path) -> list[Path]:
    """Licences and notices anywhere under a folder, or in the folder that a file lies in; [] where nothing is."""
    if path.is_dir():
        return [file for file in files_under(path) if is_licence(file)]
    return sorted(file for file in path.parent.glob("*") if is_licence(file)) if path.exists() else []


def is_licence(path: Path) -> bool:
    """A file that is called LICENSE, COPYING or NOTICE, or LICENSE.txt, LICENSE-MIT, and is no program and no data."""
    named = NAMES.fullmatch(path.name) is not None and path.suffix.lower() not in NOT_TEXTS
    return named and path.is_file() and path.stat().st_size <= LARGEST


def python_licence() -> Path | None:
    """The licence of the Python that runs this, wherever its build has put it; None where it came without."""
    library, prefix = Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [
        library / "LICENSE.txt",  # python.org, pyenv, uv, Debian, the Docker images
        library / "LICENSE",
        prefix / "LICENSE.txt",  # Windows
        prefix / "LICENSE_PYTHON.txt",  # conda
        prefix / "licenses" / "LICENSE.cpython.txt",  # python-build-standalone, unpacked whole
        *(prefix / "share" / "doc" / name / "copyright" for name in (version, "python3")),  # Debian
        *(prefix / "share" / "licenses" / name / "LICENSE" for name in (version, "python3", "python")),
        *(prefix / "share" / "doc" / name / "LICENSE" for name in (version, "python3", "python")),
    ]
    return next((path for path in places if path.is_file() and _is_pythons(path)), None)


def _is_pythons(path: Path) -> bool:
    """What lies in a prefix may be anybody's LICENSE."""
    return b"python software foundation" in path.read_bytes().lower()
