"""Somebody else's Llama 4 or Llama 3 as a run of ours.

The weights are read strictly, written as step 0 of a stage called `import`, and questioned like an export:
transformers answers from the directory that was read (of a multimodal model: from the text part as we wrote
it), our model from what it holds. From then on the run is like any other.

Left out: vision weights, which are passed over with a note, and chat templates, which are never taken over.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import publish_directory, read_json, remove_tree, sha256, write_json, write_manifest
from behemoth.base.logs import say
from behemoth.export.adapters import load_adapter
from behemoth.export.hf import failures, question
from behemoth.export.reference import ask
from behemoth.model.adapters import merged
from behemoth.model.config import TEACHER
from behemoth.model.open import MANY, RECEIPT, check_tokenizer, has_template, open_model
from behemoth.model.transformer import Transformer
from behemoth.model.weights import CONFIG, is_multimodal, load_weights, save_weights, weight_files
from behemoth.text.tokenizer import Tokenizer


def import_model(directory: Path, run: Path, adapter: Path | None = None) -> dict[str, Any]:
    """Read the Hugging Face `directory` into the new run directory `run` and return the receipt.

    adapter: a directory of PEFT's with an adapter for this model, which is folded into the weights once the model
    itself has been questioned.

    InputError: `run` exists, or the model or its tokenizer is not supported. DamagedError: a broken file.
    AnswerIsNo: transformers computes something else from the same directory.
    """
    if run.exists():
        raise InputError(f"{run} already exists; import into a new directory, or move that one away")
    config = read_json(directory / CONFIG)
    model = load_weights(directory)
    tokenizer = Tokenizer.from_huggingface(directory)
    check_tokenizer(directory, directory, model.config.vocab_size)
    temporary = run.with_name(f".{run.name}.{os.getpid()}.tmp")
    try:
        stage = temporary / "import"
        checkpoint = stage / "checkpoints" / "step-00000000"
        weights = checkpoint / "weights" / TEACHER
        turns = MANY if tokenizer.can_chat and has_template(directory) else 0
        save_weights(model, weights, tokenizer_sha256=tokenizer.sha256, turns=turns)
        tokenizer.save(temporary / "tokenizer")
        receipt = _receipt(model, tokenizer, weights if is_multimodal(config) else directory, directory)
        write_json(stage / RECEIPT, receipt)
        if adapter is not None:
            load_adapter(model, adapter)
            save_weights(merged(model), weights, tokenizer_sha256=tokenizer.sha256, turns=turns)
        write_manifest(
            checkpoint, step=0, facts={"imported": directory.name, "adapter": adapter and adapter.name}
        )
        write_json(
            temporary / "record.json", {"imported_from": str(directory), "versions": receipt["versions"]}
        )
        publish_directory(temporary, run)
    finally:
        remove_tree(temporary)
    if is_multimodal(config):
        say(f"{directory}: this model can see; its text part was imported, its vision weights were left out")
    return receipt


def bring_in(spec: str, run: Path) -> None:
    """The model that `spec` means as the first stage of the run directory `run`, beside what else is there.

    A directory of somebody else's is questioned like any import; a model of ours was when it was made or exported.
    """
    aside = run / f".import.{os.getpid()}.tmp"
    remove_tree(aside)
    try:
        if (Path(spec) / CONFIG).is_file() and not (Path(spec) / RECEIPT).is_file():
            import_model(Path(spec), aside)
        else:
            opened = open_model(spec)
            checkpoint = aside / "import" / "checkpoints" / "step-00000000"
            tokenizer = Tokenizer.load(opened.tokenizer_directory)
            weights = checkpoint / "weights" / TEACHER
            save_weights(opened.model, weights, tokenizer_sha256=tokenizer.sha256, turns=opened.turns)
            write_manifest(checkpoint, step=0, facts={"from": spec, "sha256": opened.sha256})
            tokenizer.save(aside / "tokenizer")
        remove_tree(run / "tokenizer")
        (aside / "tokenizer").rename(run / "tokenizer")
        publish_directory(aside / "import", run / "import")
    finally:
        remove_tree(aside)


def _receipt(model: Transformer, tokenizer: Tokenizer, source: Path, directory: Path) -> dict[str, Any]:
    """What transformers makes of `source`, and hashes of the files read. AnswerIsNo on a mismatch."""
    with TemporaryDirectory(prefix="behemoth-receipt-") as evidence:
        ask(model, tokenizer, Path(evidence), source, directory, imported=True)
        (receipt,) = question([Path(evidence)])
    if receipt["verdict"] != "match":
        lines = "\n".join(f"  {line}" for line in failures(receipt))
        raise AnswerIsNo(f"{directory} was not imported: transformers answers differently\n{lines}")
    read = [directory / CONFIG, *weight_files(directory), directory / "tokenizer.json"]
    return receipt | {"files": {path.name: sha256(path) for path in read}}
