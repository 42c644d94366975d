"""A model ready to talk, from whatever `open_model` reads or from a closed bundle with the key of its lab.

    BEHEMOTH_SEAL_KEY=seal.key behemoth generate served/closed "The model"

What is sealed is opened into files that have no name and lie in memory alone (memfd_create(2)): a directory of links
leads to them while the weights are read, and a process that is killed leaves links to nothing. The files have to be
those of the bundle's manifest before they are opened, and their content what the manifest says of it after.

Left out: who signed the bundle, which `behemoth verify` asks, and who may read this process's memory or the swap space
(turn it off, or encrypt it). Memory holds the weights twice while they are read, since a piece is believed only when
its whole file was. Linux only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from behemoth.base.errors import InputError
from behemoth.bundle import manifest
from behemoth.bundle.refusals import Refused
from behemoth.bundle.seal import open_sealed, read_seal_key
from behemoth.model.open import SEAL_KEY, SEALED, open_model
from behemoth.model.transformer import Transformer
from behemoth.text.tokenizer import Tokenizer

FILES = Path("/proc/self/fd")  # where this process finds its own open files


@dataclass(frozen=True)
class Ready:
    """All of it in memory. name, sha256 and turns: as of `Opened`."""

    model: Transformer
    tokenizer: Tokenizer
    name: str
    sha256: str
    turns: int


def ready(spec: str | Path, device: torch.device | str = "cpu") -> Ready:
    """The model that `spec` means and its tokenizer; of a closed bundle where $BEHEMOTH_SEAL_KEY names its key's file.

    InputError as of `open_model`. Refused: the bundle is not as it was made, or the key is another one's.
    """
    bundle, key = Path(spec), os.environ.get(SEAL_KEY)
    if not key or not (bundle / SEALED).is_dir():
        return _loaded(spec, device)
    record = manifest.check(bundle)
    with unsealed(bundle, record, read_seal_key(Path(key))) as directory:
        found = _loaded(directory, device, bundle.absolute().name)
    if found.sha256 != record.get("model"):
        raise Refused("model-differs", f"{bundle}: holds another model than its manifest says")
    return found


@contextmanager
def unsealed(bundle: Path, record: dict[str, Any], key: bytes) -> Iterator[Path]:
    """A directory that reads like the export that was sealed, gone at the end. record: the manifest, checked.

    A file for llama.cpp is not opened: nothing here reads it.
    """
    if not hasattr(os, "memfd_create") or not FILES.is_dir():
        raise InputError(f"{bundle}: a closed bundle is opened in memory, which takes Linux with /proc")
    with ExitStack() as until_the_end:
        place = Path(until_the_end.enter_context(TemporaryDirectory(prefix="behemoth-sealed-")))
        for name, sha256 in _listed(record).items():
            if name.endswith(".gguf"):
                continue
            file = os.memfd_create(name)
            until_the_end.callback(os.close, file)
            seen = hashlib.sha256()
            with open(file, "wb", closefd=False) as out:
                for piece in open_sealed(bundle / SEALED / name, key, name):
                    seen.update(piece)
                    out.write(piece)
            if seen.hexdigest() != sha256:
                raise Refused("facts-differ", f"{name}: holds something else than the manifest says")
            (place / name).symlink_to(FILES / str(file))
        yield place


def _listed(record: dict[str, Any]) -> dict[str, str]:
    """The sealed files by name and the SHA-256 of their content. Each is a file of the bundle, so its name is safe."""
    try:
        sealed = {str(name): str(entry["sha256"]) for name, entry in record["sealed"].items()}
    except (KeyError, TypeError, AttributeError):
        sealed = {}
    if not sealed or any("/" in name or f"{SEALED}/{name}" not in record["files"] for name in sealed):
        raise Refused("malformed", f"{manifest.MANIFEST}: does not say what the sealed files hold")
    return sealed


def _loaded(spec: str | Path, device: torch.device | str, name: str = "") -> Ready:
    opened = open_model(spec, device=device)
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    return Ready(opened.model, tokenizer, name or opened.name, opened.sha256, opened.turns)
