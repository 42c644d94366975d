"""How fast a bundle of weights is checked: megabytes per second and core of `manifest.check`, and of sealed files.

    python benchmarks/verify_bundle.py [--gb 14] [--shard-gb 4] [--at DIRECTORY] [--repeats 3] [--sealed]

Shards of random bytes are written to a directory of its own, listed, signed and checked, and taken away again. Per core
means by processor time, of all threads together, so that a machine busy with other things tells the same number; the
wall clock beside it has the disk in it, and the first check after writing finds what the page cache still holds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from behemoth.base.files import read_json
from behemoth.bundle import keys, manifest, oms, seal

PIECE = 64_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--shard-gb", type=float, default=1.0)
    parser.add_argument("--at", type=Path, help="where to write; the system's temporary directory by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sealed", action="store_true", help="seal the first shard and open it, too")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="verify-bundle-", dir=options.at))
    try:
        measure(root, int(options.gb * 1e9), int(options.shard_gb * 1e9), options.repeats, options.sealed)
    finally:
        shutil.rmtree(root)


def measure(root: Path, num_bytes: int, shard_bytes: int, repeats: int, sealed: bool) -> None:
    bundle = root / "bundle"
    shards = weights(bundle, num_bytes, shard_bytes)
    print(f"{num_bytes / 1e9:g} GB in {len(shards)} files, {len(os.sched_getaffinity(0))} cores")
    key = keys.generate()
    tell("list and sign", num_bytes, [timed(lambda: signed(bundle, key))])
    tell("manifest.check", num_bytes, [timed(lambda: manifest.check(bundle)) for _ in range(repeats)])
    hashes = manifest.hashes(bundle, read_json(bundle / manifest.MANIFEST))
    wall, _ = timed(lambda: oms.verify(bundle, key.public, hashes))
    print(f"{'oms.verify':<16}{wall * 1000:8.2f} ms, no file read again")
    if sealed:
        secret, one = os.urandom(seal.KEY), shards[0]
        size, hidden = one.stat().st_size, root / "sealed"
        tell("seal", size, [timed(lambda: seal.seal(one, hidden, secret, one.name))])
        tell("unseal_to", size, [timed(lambda: seal.unseal_to(hidden, root / "open", secret, one.name))])


def weights(bundle: Path, num_bytes: int, shard_bytes: int) -> list[Path]:
    """Files of no pattern: a piece drawn once, each time begun at another byte."""
    bundle.mkdir()
    piece = memoryview(os.urandom(PIECE) * 2)
    shards: list[Path] = []
    for begin in range(0, num_bytes, shard_bytes):
        shards.append(bundle / f"model-{len(shards) + 1:05}.safetensors")
        left = min(shard_bytes, num_bytes - begin)
        with open(shards[-1], "wb") as file:
            while left:
                start = (begin + left) % PIECE
                left -= file.write(piece[start : start + min(left, PIECE)])
    return shards


def signed(bundle: Path, key: keys.PrivateKey) -> None:
    record = manifest.write(bundle, {"name": "random"})
    oms.sign(bundle, key, hashes=manifest.hashes(bundle, record))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds by the wall clock, seconds of processor time)."""
    wall, core = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - core


def tell(what: str, num_bytes: int, times: list[tuple[float, float]]) -> None:
    wall, core = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{what:<16}{num_bytes / 1e6 / core:8,.0f} MB/s per core, {num_bytes / 1e6 / wall:8,.0f} MB/s by the clock"
    )


if __name__ == "__main__":
    main()
