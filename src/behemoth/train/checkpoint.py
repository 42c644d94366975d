"""Saves that are whole or absent, and proved good before they are believed.

A save is written into a fresh temporary directory, listed in a manifest with a hash per file, flushed,
published by one rename and read back; only then may an older one go. Nothing underneath notices a flipped bit
(safetensors and torch load it silently), so every file is hashed again before a save is loaded: a damaged one
is named, moved aside, never deleted, and the next older one is taken. A save that fails (disk full, a bad
sector) costs that save and not the run.

    checkpoints/
      step-00000400/              MANIFEST.json and what `write` put there
      damaged-step-00000200/      set aside, for a person to look at
      .step-00000600.4711.tmp/    being written, or being removed, by process 4711

Tensors are stored as safetensors, everything else as JSON; there is no pickle. Left out: saving in the
background, sharded saves, and two processes that train in one directory.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import (
    MANIFEST,
    publish_directory,
    remove_tree,
    verify_manifest,
    write_manifest,
)
from behemoth.base.logs import say
from behemoth.base.units import human_bytes

ROOM = 1.2  # a save wants this many times the last one's bytes free before it begins
FEWEST = 2  # verified saves that retention always leaves: one is not enough if it rots

STEP = re.compile(r"step-(\d{8,})")
TEMPORARY = re.compile(r"\.step-\d{8,}\.(\d+)\.tmp")


class Checkpoints:
    """The saves of one run, in the directory `root`; the newest `keep` good ones stay (never fewer than two).

    Opening removes what dead processes left half written. InputError when `root` cannot be made or written.
    """

    def __init__(self, root: Path, keep: int = 3):
        self.root, self.keep = Path(root), max(keep, FEWEST)
        self._verified: set[Path] = set()  # hashed by this process; a new save does not hash older ones again
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.root}: cannot be made ({error.strerror}); choose another directory"
            ) from None
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise InputError(
                f"{self.root}: cannot be written to; choose another directory, or change its rights"
            )
        self._remove_leftovers()

    def save(self, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> Path | None:
        """Publish what `write(directory)` writes as the save of `step`; `facts` go into its manifest.

        Returns the published directory, or None when the disk refused: that is said, nothing half-written is
        left, older saves are as they were, and training can go on. A good save of the same step is kept as it
        is. Errors that are not the disk's pass through.
        """
        final, temporary = self.root / f"step-{step:08d}", self._temporary(step)
        self._verified.discard(final)
        if final.exists() and self._is_good(final, say):
            return final
        try:
            self._need_room()
            temporary.mkdir()
            write(temporary)
            write_manifest(temporary, step=step, facts=facts)
            publish_directory(temporary, final)
        except (OSError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            say(f"step {step}: checkpoint NOT saved ({error}); {self._what_is_safe()}; training goes on")
            return None
        finally:
            remove_tree(temporary)
        if not self._is_good(final, say):
            return None
        self._retire()
        return final

    def latest(self, say: Callable[[str], None] = say) -> Path | None:
        """The newest save whose every file has the bytes that were written, or None if there never was one.

        Damaged saves are named (file and reason) and moved aside. DamagedError when damaged ones are all
        there is: a run must not start from zero without being told to.
        """
        self._verified.clear()
        for path in self._newest_first():
            if self._is_good(path, say):
                return path
        damaged = sorted(path.name for path in self.root.glob("damaged-step-*"))
        if damaged:
            raise DamagedError(
                self.root,
                f"no good checkpoint is left, only damaged ones ({', '.join(damaged)}). "
                "To start this stage afresh, move this directory away; to go on, restore a good save into it",
            )
        return None

    def _newest_first(self) -> list[Path]:
        return sorted((path for path in self.root.iterdir() if STEP.fullmatch(path.name)), key=step_of)[::-1]

    def _temporary(self, step: int) -> Path:
        path = self.root / f".step-{step:08d}.{os.getpid()}.tmp"
        remove_tree(path)
        return path

    def _is_good(self, path: Path, say: Callable[[str], None]) -> bool:
        """Whether every byte is as written; if not, say what differs and move the save aside."""
        if path in self._verified:
            return True
        try:
            if verify_manifest(path).get("step") != step_of(path):
                raise DamagedError(path / MANIFEST, f"not the manifest of {path.name}")
        except (DamagedError, OSError) as error:
            say(f"damaged checkpoint: {error}")
            self._set_aside(path, say)
            return False
        self._verified.add(path)
        return True

    def _set_aside(self, path: Path, say: Callable[[str], None]) -> None:
        names = [f"damaged-{path.name}", *(f"damaged-{path.name}-{n}" for n in range(2, 1000))]
        aside = next(self.root / name for name in names if not (self.root / name).exists())
        try:
            path.rename(aside)
            say(f"  moved to {aside}; it can be deleted once nobody wants to look at it")
        except OSError as error:  # a read-only disk: the save is passed over all the same
            say(f"  and it cannot be moved aside ({error})")

    def _need_room(self) -> None:
        saves = self._newest_first()
        if not saves:
            return
        wanted = ROOM * sum(path.stat().st_size for path in saves[0].rglob("*") if path.is_file())
        free = shutil.disk_usage(self.root).free
        if free < wanted:
            raise OSError(
                errno.ENOSPC,
                f"{human_bytes(free)} free where {human_bytes(int(wanted))} are wanted",
                str(self.root),
            )

    def _what_is_safe(self) -> str:
        saves = self._newest_first()
        return f"the newest good one is {saves[0].name}" if saves else "there is no earlier one"

    def _retire(self) -> None:
        """Remove what is older than the newest `keep` verified saves; each leaves our sight as a whole."""
        good = 0
        for path in self._newest_first():
            if good < self.keep:
                good += self._is_good(path, say)
                continue
            try:
                remove_tree(path.rename(self._temporary(step_of(path))))
            except OSError as error:
                say(f"{path}: cannot be removed ({error})")

    def _remove_leftovers(self) -> None:
        for path in self.root.iterdir():
            if (match := TEMPORARY.fullmatch(path.name)) and not is_other_process(int(match[1])):
                remove_tree(path)


def step_of(path: Path) -> int:
    """The step of a save, from its directory's name."""
    match = STEP.fullmatch(path.name)
    assert match, path
    return int(match[1])


def is_other_process(pid: int) -> bool:
    """Whether `pid` is alive and not us: in a container a restarted run often has the dead one's number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and someone else's
        return True
    return True


def is_disk_error(error: Exception) -> bool:
    """Whether the disk refused; safetensors wraps what the system said into an error of its own."""
    return isinstance(error, OSError) or "os error" in str(error).lower()


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors of any device and stride as safetensors; what shares memory is stored apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(_apart(tensors), path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of `path`, on the CPU; changing them does not touch the file. DamagedError, InputError."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise DamagedError(path, f"not a whole safetensors file ({error})") from None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two in one storage: safetensors has no notion of sharing and refuses it."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return result
