"""How often the index finds what was planted, how often it is wrong, and how fast it is, on real text.

Every document of the data directory's `pretrain` (books in pieces of 4,000 characters) is either given to `prepare`
or kept fresh, one in five. Passages of 50 to 200 words from a third of the fresh documents are planted at random
places of training documents, as they are or with 5% of their words substituted, removed or inserted. The other
fresh documents, and the items of six benchmarks, were planted nowhere: whatever is flagged there is listed, and is
a false alarm unless one training document really shares a long passage with it, which is checked word by word.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections import Counter

import pytest

from behemoth.base.files import read_jsonl
from behemoth.data.overlap import INDEX, Overlap, words
from behemoth.data.prepare import prepare
from behemoth.data.sources import FilesSource, Tally, passages, read
from behemoth.text.tokenizer import Tokenizer

PIECE = 4000  # characters of a book
PLANTED = 1000  # passages of each kind
SHARED_RUN = 20  # words in a row, of one training document, that make an alarm a true one
BENCHMARKS = ("gsm8k_test", "arc_easy", "openbook_qa", "piqa", "commonsense_qa", "lambada_openai")

INDEX_ALONE = """
import json, sys, time
from pathlib import Path
from behemoth.data.overlap import OverlapWriter
from behemoth.data.prepare import _batches
from behemoth.data.sources import FilesSource, Tally, read

folder, out = map(Path, sys.argv[1:])
seconds = 0.0
writer = OverlapWriter(out)
for batch in _batches(read(FilesSource(folder), Tally(), lambda _: None)):
    began = time.monotonic()
    writer.add(batch)
    seconds += time.monotonic() - began
began = time.monotonic()
writer.__exit__(None)
seconds += time.monotonic() - began
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) * 1024  # ru_maxrss would remember the process that started this one
size = sum(path.stat().st_size for path in out.iterdir())
print(json.dumps({"seconds": seconds, "peak": peak, "size": size}))
"""


def collections(folder):
    """Documents by collection; a book is cut, so that there are many."""
    for path in sorted(folder.iterdir()):
        for document in read(FilesSource(path, name=path.name), Tally(), lambda _: None):
            pieces = [document.text]
            if path.name.startswith(("books", "tinyshakespeare", "wikitext")):
                pieces = passages(document.text, PIECE)
            for number, text in enumerate(pieces):
                if len(text.split()) >= 50:
                    yield path.name, f"{document.id}#{number}", document.licence, text


def edited(passage, vocabulary, rng):
    """5% of the words changed, rounded down."""
    chosen = list(passage)
    for _ in range(len(passage) // 20):
        place = rng.randrange(len(chosen))
        match rng.randrange(3):
            case 0:
                chosen[place] = rng.choice(vocabulary)
            case 1:
                del chosen[place]
            case 2:
                chosen.insert(place, rng.choice(vocabulary))
    return chosen


def benchmark_items(folder):
    for name in BENCHMARKS:
        (path,) = folder.glob(f"{name}.jsonl*")
        for document in lines_of(path):
            question = document.get("query") or document.get("question") or document["context"]
            answer = document.get("answer") or document.get("continuation")
            yield name, f"{question} {answer or document['choices'][document['gold']]}"


def lines_of(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def shares_a_run(text, other, length=SHARED_RUN):
    one, two = words(text), words(other)
    runs = {tuple(two[i : i + length]) for i in range(len(two) - length + 1)}
    return any(tuple(one[i : i + length]) in runs for i in range(len(one) - length + 1))


@pytest.fixture(scope="module")
def planted(tmp_path_factory, data_directory):
    """A corpus with planted passages; what was planted; fresh documents; the text of every training document."""
    rng = random.Random(0)
    everything = list(collections(data_directory / "pretrain"))
    fresh = [d for d in everything if zlib.crc32(d[1].encode()) % 5 == 0]
    train = {f"{d[0]}/{d[1]}": d for d in everything if zlib.crc32(d[1].encode()) % 5}
    donors, fresh = fresh[::3], [d for i, d in enumerate(fresh) if i % 3]
    vocabulary = " ".join(d[3] for d in donors[:50]).split()
    found = {"verbatim": [], "edited": []}
    texts = {name: d[3].split(" ") for name, d in train.items()}
    names = sorted(texts)
    for kind, passages_ in found.items():
        for _ in range(PLANTED):
            source = rng.choice(donors)[3].split()
            start = rng.randrange(max(len(source) - 50, 1))
            passage = source[start : start + rng.randint(50, 200)]
            if len(words(" ".join(passage))) < 50:
                continue
            name = rng.choice(names)
            host = texts[name]
            place = rng.randrange(len(host) + 1)
            host[place:place] = passage if kind == "verbatim" else edited(passage, vocabulary, rng)
            passages_.append((name, " ".join(passage)))
    texts = {name: " ".join(text) for name, text in texts.items()}
    root = tmp_path_factory.mktemp("planted")
    lines = (
        json.dumps({"id": name, "text": texts[name], "source": d[0], "licence": d[2]}) + "\n"
        for name, d in train.items()
    )
    (root / "text.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = Tokenizer.train(list(texts.values())[::50], 4096)
    report = prepare(
        [FilesSource(root / "text.jsonl")],
        root / "data",
        tokenizer_directory=root / "tokenizer",
        vocab_size=4096,
        tokenizer=tokenizer,
        held_out=0.001,
    )
    kept = {record["id"] for record in read_jsonl(root / "data" / INDEX / "documents.jsonl")}
    found = {kind: [text for name, text in planted if name in kept] for kind, planted in found.items()}
    return root / "data", found, fresh, texts, report


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_planted_passages_are_found_and_fresh_text_raises_no_alarm(planted, data_directory, capsys):
    directory, found, fresh, texts, report = planted
    overlap = Overlap.open({"pretrain": directory})
    size = sum(path.stat().st_size for path in (directory / INDEX).iterdir())
    shards = sum(path.stat().st_size for path in directory.rglob("tokens-*.bin"))
    lines = [
        f"index {size / report['train']['bytes']:.2f}, shards {shards / report['train']['bytes']:.2f} bytes a byte"
    ]
    rates = {}
    for kind, passages_ in found.items():
        counts = Counter(overlap.find(passage).verdict for passage in passages_)
        rates[kind] = counts["dirty"] / len(passages_)
        lines.append(f"{kind}: {len(passages_)} planted, {dict(counts)}")
    rng = random.Random(1)
    looked_at, alarms, false = Counter(), Counter(), []
    for group, text in unplanted(fresh, data_directory, rng):
        result = overlap.find(text)
        looked_at[group] += 1
        if result.verdict in ("dirty", "partly dirty"):
            alarms[group, result.verdict] += 1
            if not any(shares_a_run(text, texts[match.document]) for match in result.matches):
                false.append((group, result.verdict, result.covered, result.words, text[:80]))
    for group, count in looked_at.items():
        told = {verdict: n for (g, verdict), n in alarms.items() if g == group}
        wrong = Counter(verdict for g, verdict, *_ in false if g == group)
        lines.append(f"{group}: {count} looked up, flagged {told}, of these false {dict(wrong)}")
    total = sum(count for group, count in looked_at.items() if group not in BENCHMARKS)
    dirty = sum(count for (_, verdict), count in alarms.items() if verdict == "dirty")
    lines.append(
        f"of {total} fresh documents and passages flagged {alarms.total() / total:.2%} "
        f"(dirty {dirty / total:.2%}), false {len(false) / total:.2%}"
    )
    with capsys.disabled():
        print("\n" + "\n".join(map(str, [*lines, *false[:10]])))
    assert rates["verbatim"] >= 0.99
    assert rates["edited"] >= 0.95
    assert len(false) <= 0.005 * total
    assert not any(group in BENCHMARKS for group, *_ in false)


def unplanted(fresh, data_directory, rng):
    """Fresh documents, a passage of each as long as the planted ones, and benchmark items."""
    for collection, _, _, text in fresh:
        kind = "prose" if collection.startswith(("books", "tiny", "wiki", "c4")) else "technical"
        yield f"{kind}, documents", text
        parts = text.split()
        start = rng.randrange(max(len(parts) - 50, 1))
        yield f"{kind}, passages", " ".join(parts[start : start + rng.randint(50, 200)])
    yield from benchmark_items(data_directory / "eval")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_hundred_megabytes_are_indexed_in_two_minutes(tmp_path, data_directory, capsys):
    """Indexing alone, in a process of its own: reading is not counted, its memory is."""
    size = int(os.environ.get("BEHEMOTH_INDEX_MB", "100")) * 1_000_000
    texts = [text for _, _, _, text in collections(data_directory / "pretrain")]
    rng, written = random.Random(0), 0
    with open(tmp_path / "text.jsonl", "w", encoding="utf-8") as file:
        while written < size:
            for text in texts:
                if written >= size:
                    break
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
            texts = [shuffled(text, rng) for text in texts]
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", INDEX_ALONE, str(tmp_path / "text.jsonl"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    with capsys.disabled():
        print(
            f"\n{written / 1e6:.0f} MB indexed in {found['seconds']:.1f} s ({time.monotonic() - began:.1f} s with "
            f"reading), peak memory {found['peak'] / 1e6:.0f} MB, {found['size'] / written:.2f} bytes a byte of text"
        )
    assert found["seconds"] < 120
    assert found["peak"] < 500_000_000


def shuffled(text, rng):
    parts = text.split(" ")
    rng.shuffle(parts)
    return " ".join(parts)
