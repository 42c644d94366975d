"""A folder larger than the memory allowed for it becomes a corpus.

The text is real where BEHEMOTH_DATA names some: every copy has the words of each paragraph in another order, so that
no copy is a near-duplicate of another. The size is 500 MB, or what BEHEMOTH_INGEST_MB says.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from behemoth.base.files import read_json

LIMIT_BYTES = 1_000_000_000
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


def write_text(folder: Path, data: Path, size: int) -> int:
    """Files of about 8 MB in turn as .txt (one long text) and .jsonl.gz until there are `size` bytes of text."""
    folder.mkdir()
    written, copy = 0, 0
    while written < size:
        rng = random.Random(copy)
        for path in sorted((data / "pretrain").glob("*.jsonl.gz")):
            texts = []
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for line in file:
                    record = json.loads(line)
                    texts.append(shuffled(record["text"], rng))
                    written += len(texts[-1].encode())
                    if written >= size:
                        break
            write_file(folder / f"{copy:03d}-{path.name.split('.')[0]}", texts, as_lines=copy % 2 == 0)
            if written >= size:
                break
        copy += 1
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
