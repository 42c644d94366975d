"""Which model it is: one digest over config.json and the weight files, whoever reads them. No torch here.

The same for a checkpoint's member, an exported directory and an open bundle, so that what was asked, what was
approved and what is loaded can be held against each other. The tokenizer has no part in it: config.json of our own
models names its hash, and a receipt lists every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from behemoth.base.errors import DamagedError
from behemoth.base.files import read_json, sha256

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
RECEIPT = "receipt.json"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a weights directory. DamagedError when one is missing."""
    names = [WEIGHTS]
    if not (directory / WEIGHTS).exists() and (directory / INDEX).exists():
        names = names_in(read_json(directory / INDEX), directory / INDEX)
    for name in names:
        if "/" in name or not (directory / name).is_file():
            raise DamagedError(directory / name, "missing")
    return [directory / name for name in names]


def names_in(index: object, where: Path) -> list[str]:
    """The files that an index of weights names."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise DamagedError(where, "has no weight_map")
    return sorted(set(names))


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of config.json and of each weight file."""
    return {path.name: sha256(path) for path in [directory / CONFIG, *weight_files(directory)]}


def digest(hashes: Mapping[str, str]) -> str:
    """The model's hash, of `file_hashes`."""
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()
