"""Opening a model, whatever one has of it: a run, a checkpoint, or a directory of weights.

    runs/quickstart               what the run has come to: the newest good checkpoint of its latest stage
    runs/quickstart:student       another model of it: a member of its pretraining, or sft, rl, dpo
    runs/.../step-00000400        one checkpoint (`:member` works here too)
    runs/.../export/teacher       config.json + model.safetensors + tokenizer.json
    bundles/open                  an open bundle, which is such a directory and more

A closed bundle is not opened here: its key is not this floor's matter (opening.py has it).
A checkpoint is held to its manifest and an exported directory to its receipt, byte for byte, before it is
believed. The tokenizer is not loaded here, only found and measured against the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import MANIFEST, read_json, sha256, verify_manifest
from behemoth.base.logs import say
from behemoth.model.config import TEACHER, ModelConfig
from behemoth.model.identity import CONFIG, RECEIPT, digest, file_hashes
from behemoth.model.transformer import Transformer
from behemoth.model.weights import OURS, config_from_hf, load_weights

TOKENIZER = "tokenizer.json"
SEALED, STAGED = "sealed", "staged.json"  # what a closed bundle and a staged release have in place of weights
SEAL_KEY = "BEHEMOTH_SEAL_KEY"  # the environment variable that names the file of a closed bundle's key
STAGES = ("import", "pretrain", "sft", "rl", "dpo")  # of a run, in their order
MANY = 1000  # turns, of a model whose teaching nobody here knows
PADDING = 512  # vocabularies are filled up to a round number, in practice by less than this


@dataclass(frozen=True)
class Opened:
    """A model ready to run, and where it came from."""

    model: Transformer
    tokenizer_directory: Path
    name: str  # the member, or the directory's name
    sha256: str  # of config.json and the weight files
    directory: Path  # where these lie

    @property
    def turns(self) -> int:
        """The most questions in a conversation that taught it to answer in the chat template, 0 where none did.

        Of somebody else's model only a template tells: many, or none.
        """
        path = self.directory / CONFIG
        told = read_json(path).get(OURS, {}) if path.exists() else {}
        if "turns" in told or (self.directory / RECEIPT).exists() or self.step is not None:
            return int(told.get("turns", 0))
        return MANY if has_template(self.directory) else 0

    @property
    def step(self) -> int | None:
        """The step of the checkpoint that the weights lie in; None outside one."""
        found = re.fullmatch(r"step-(\d+)", self.directory.absolute().parent.parent.name)
        return int(found[1]) if found else None


def open_model(
    spec: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Opened:
    """Load a model; `spec` as above. dtype: precision of weights and activations, as stored when None.

    InputError: no such path, no checkpoint yet, no such member, a tokenizer of another model. DamagedError: a
    file is not as it was written.
    """
    directory, hashes = _find(spec)
    tokenizer_directory = _find_tokenizer(directory)
    model = load_weights(directory, dtype, device)
    check_tokenizer(directory, tokenizer_directory, model.config.vocab_size)
    return Opened(model, tokenizer_directory, directory.name, digest(hashes), directory)


def config_of(spec: str | Path) -> ModelConfig:
    """The architecture of what `spec` means; no weight is read."""
    path = locate(spec) / CONFIG
    return config_from_hf(read_json(path), str(path))


def has_template(directory: Path) -> bool:
    """Whether a Hugging Face directory has a chat template, which is a sign that its model was taught to use it."""
    config = directory / "tokenizer_config.json"
    beside = (directory / "chat_template.jinja").is_file()
    return beside or (config.is_file() and "chat_template" in read_json(config))


def locate(spec: str | Path) -> Path:
    """The weights directory that `spec` means, without loading it."""
    return _find(spec)[0]


# ------------------------------------------------------------------------------------------------- finding it


def _find(spec: str | Path) -> tuple[Path, dict[str, str]]:
    """The weights directory that `spec` means, and the proved hashes of its config and weights."""
    path, member = _split(str(spec))
    if (path / CONFIG).is_file() and member is None:
        return path, _hashes(path)
    if (path / "weights").is_dir():
        record = verify_manifest(path)
        return _member(path, member, record)
    if path.is_dir() and any(path.glob("*/checkpoints")):
        checkpoint, record = _newest_good(path, member)
        return _member(checkpoint, member, record)
    if (path / STAGED).is_file():
        raise InputError(f"{path} is a staged release, which is not one model; name {path / 'closed'}")
    if (path / SEALED).is_dir():
        raise InputError(
            f"{path} is a closed bundle, and its weights are encrypted: behemoth generate and behemoth chat open "
            f"it where {SEAL_KEY} names the file of its key; for all else name the run it was made of"
        )
    raise InputError(
        f"{path} is not a model: it holds no {CONFIG} (weights), no weights/ (a checkpoint) "
        "and no */checkpoints (a run)"
    )


def _split(spec: str) -> tuple[Path, str | None]:
    """'RUN:member' -> (RUN, member), unless a path of that whole name exists."""
    path, member = Path(spec), None
    if not path.exists() and ":" in spec:
        before, _, member = spec.rpartition(":")
        path = Path(before)
    if not path.exists():
        raise InputError(
            f"{path}: no such file or directory; name a run, a checkpoint or a directory of weights"
        )
    return path, member


def _newest_good(run: Path, member: str | None) -> tuple[Path, dict]:
    """The newest checkpoint of the last stage that has `member` (or anything), stepping over damaged ones.

    The order of the stages is known; the time of a file is not, once somebody has copied it.
    """
    all_saves = [path.parent for path in run.glob(f"*/checkpoints/step-*/{MANIFEST}")]
    if not all_saves:
        raise InputError(f"{run} has no checkpoint yet; train it first, or go on training: behemoth run")
    saves = [save for save in all_saves if member is None or (save / "weights" / member).is_dir()]
    if not saves:
        names = sorted({path.name for save in all_saves for path in (save / "weights").iterdir()})
        raise InputError(f"{run} has no member {member!r}; it has {', '.join(names) or 'none'}")

    def place(save: Path) -> tuple[int, int]:
        stage = save.parent.parent.name
        return STAGES.index(stage) if stage in STAGES else -1, int(save.name.removeprefix("step-"))

    damage: DamagedError | None = None
    for save in sorted(saves, key=place, reverse=True):
        try:
            return save, verify_manifest(save)
        except DamagedError as error:
            damage = error
            say(f"{save.name} is damaged, taking an older one ({error})")
    assert damage is not None
    raise DamagedError(run, f"every checkpoint is damaged; the oldest: {damage}")


def _member(checkpoint: Path, member: str | None, record: dict) -> tuple[Path, dict[str, str]]:
    """One member's weights in a verified checkpoint."""
    members = sorted(path.name for path in (checkpoint / "weights").iterdir() if path.is_dir())
    chosen = member or (TEACHER if TEACHER in members else members[0] if members else None)
    if chosen not in members:
        raise InputError(f"{checkpoint} has no member {chosen!r}; it has {', '.join(members) or 'none'}")
    prefix = f"weights/{chosen}/"
    hashes = {n.removeprefix(prefix): f["sha256"] for n, f in record["files"].items() if n.startswith(prefix)}
    return checkpoint / "weights" / chosen, hashes


# -------------------------------------------------------------------------------------- proving and measuring


def _hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of config and weights; where a receipt or a manifest lies beside them, held to it."""
    checkpoint = directory.parent.parent
    if (checkpoint / MANIFEST).is_file() and directory.parent.name == "weights":
        return _member(checkpoint, directory.name, verify_manifest(checkpoint))[1]
    promised = read_json(directory / RECEIPT).get("files", {}) if (directory / RECEIPT).is_file() else {}
    hashes = file_hashes(directory)
    for name, promise in promised.items():
        path = directory / name
        if not path.is_file():
            raise DamagedError(path, f"missing, though {RECEIPT} lists it")
        if (hashes.get(name) or sha256(path)) != promise:
            raise DamagedError(path, f"its bytes are not the ones in {RECEIPT} (SHA-256 differs)")
    return hashes


def _find_tokenizer(directory: Path) -> Path:
    """Beside the weights, or in the `tokenizer` directory of the run they belong to."""
    for candidate in [directory, *(parent / "tokenizer" for parent in directory.resolve().parents[:5])]:
        if (candidate / TOKENIZER).is_file():
            return candidate
    raise InputError(
        f"{directory}: no {TOKENIZER} beside the weights, and no tokenizer/ in a run around them"
    )


def check_tokenizer(directory: Path, tokenizer_directory: Path, vocab_size: int) -> None:
    """InputError when the tokenizer is another model's: its ids do not fit, or it is not the one on record."""
    path = tokenizer_directory / TOKENIZER
    recorded = read_json(directory / CONFIG).get(OURS, {}).get("tokenizer_sha256")
    found = sha256(path)
    num_ids = _num_ids(path)
    if not 0 <= vocab_size - num_ids < PADDING:
        raise InputError(
            f"{path} has {num_ids} tokens, but the model in {directory} has vocab_size = {vocab_size}; "
            "put the tokenizer there that the model was trained with"
        )
    if recorded and recorded != found:
        raise InputError(
            f"{path} has SHA-256 {found[:16]}..., but the model in {directory} was trained with "
            f"{recorded[:16]}...; put that tokenizer back"
        )


def _num_ids(path: Path) -> int:
    """One more than the highest id of a tokenizer.json."""
    tokenizer = read_json(path)
    try:
        ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
        return max(ids) + 1
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(path, f"not a BPE tokenizer ({error!r})") from None
