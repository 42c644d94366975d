"""A folder larger than the memory allowed for it becomes a corpus.

The text is real where BEHEMOTH_DATA names some: every copy has the words of each paragraph in another order, so that
no copy is a near-duplicate of another. The size is 500 MB, or what BEHEMOTH_INGEST_MB says.
"""

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.base.files import read_json
from behemoth.data.sources import FilesSource, Tally, read

LIMIT_BYTES = 1_000_000_000
FILE_BYTES = 8_000_000
PREPARE = """
import json, resource, sys
from pathlib import Path
from behemoth.data.prepare import prepare
from behemoth.data.sources import FilesSource

folder, run = map(Path, sys.argv[1:])
prepare([FilesSource(folder)], run / "data", tokenizer_directory=run / "tokenizer", vocab_size=8192)
assert "torch" not in sys.modules
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


def copies(source: FilesSource) -> Iterator[str]:
    """The documents again and again, each time with their words in another order."""
    for copy in itertools.count():
        rng = random.Random(copy)
        for document in read(source, Tally(), lambda _: None):
            yield shuffled(document.text, rng)


def write_text(folder: Path, data: Path, size: int) -> int:
    """Files of 8 MB in turn as .jsonl.gz and .txt (one long text) until there are `size` bytes of text."""
    folder.mkdir()
    texts, held, written = [], 0, 0
    for text in copies(FilesSource(data)):
        texts.append(text)
        held += len(text.encode())
        if held >= min(FILE_BYTES, size - written):
            number = written // FILE_BYTES
            write_file(folder / f"{number:03d}", texts, as_lines=number % 2 == 0)
            texts, held, written = [], 0, written + held
        if written >= size:
            return written


def shuffled(text: str, rng: random.Random) -> str:
    paragraphs = [paragraph.split(" ") for paragraph in text.split("\n\n")]
    for words in paragraphs:
        rng.shuffle(words)
    return "\n\n".join(" ".join(words) for words in paragraphs)


def write_file(stem: Path, texts: list[str], as_lines: bool) -> None:
    if as_lines:
        with gzip.open(f"{stem}.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    else:
        Path(f"{stem}.txt").write_text("\n\n".join(texts), encoding="utf-8")


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_a_large_folder_is_read_in_bounded_memory(tmp_path, data_directory, capsys):
    size = int(os.environ.get("BEHEMOTH_INGEST_MB", "500")) * 1_000_000
    written = write_text(tmp_path / "folder", data_directory, size)
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path / "folder"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    assert result.returncode == 0, result.stderr
    peak = json.loads(result.stdout)
    report = read_json(tmp_path / "run" / "data" / "report.json")
    with capsys.disabled():
        print(
            f"\n{written / 1e6:.0f} MB of text in {seconds:.0f} s: {written / 1e6 / seconds:.2f} MB/s, "
            f"peak memory {peak / 1e6:.0f} MB; {report['documents']}"
        )
    assert peak < LIMIT_BYTES
    used = report["train"]["bytes"] + report["held_out"]["bytes"]
    assert used > 0.9 * written
    assert report["held_out"]["documents"] >= 0.1 * report["documents"]["kept"]
