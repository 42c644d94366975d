"""What a run needs to go on as if nothing had happened: every member's weights, and the state around them.

    step-00000400/
      weights/MEMBER/          config.json and model.safetensors, a model that anything can open
      state/MEMBER.safetensors optimizer state, the experts' load of the last step, the running average
      state/run.json           the step, and the steps each member left out
      state/notes.json         what else a stage needs: of reinforcement learning, what is known of its prompts

Of a model with an adapter the weights are those with the adapter merged in, and the state holds the adapter alone.

No state of a random generator is kept, because nothing in a step is random: the batch is a function of the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from behemoth.base.files import read_json, write_json
from behemoth.model.adapters import adapter_parameters, adapter_state, load_adapter_state, merged
from behemoth.model.weights import load_weights, save_weights
from behemoth.train.checkpoint import Checkpoints, load_tensors, save_tensors, step_of
from behemoth.train.loop import Member


def save(
    saves: Checkpoints,
    step: int,
    members: list[Member],
    tokenizer_sha256: str,
    notes: dict[str, Any] | None = None,
    turns: int = 0,
) -> Path | None:
    """Publish a checkpoint; None when the disk refused it (see `Checkpoints.save`).

    notes: what else going on needs, as JSON. turns: of the conversations that taught the members to answer.
    """

    def write(directory: Path) -> None:
        for member in members:
            weights = directory / "weights" / member.name
            model = merged(member.model) if adapter_parameters(member.model) else member.model
            save_weights(model, weights, tokenizer_sha256=tokenizer_sha256, turns=turns)
            save_tensors(directory / "state" / f"{member.name}.safetensors", state(member))
        skips = {member.name: [member.skipped, member.skips_in_a_row] for member in members}
        write_json(directory / "state" / "run.json", {"step": step, "skipped": skips})
        if notes:
            write_json(directory / "state" / "notes.json", notes)

    return saves.save(step, write, {"members": [member.name for member in members]})


def restore(saves: Checkpoints, members: list[Member]) -> int:
    """Load the newest good checkpoint into `members`; returns the step it was saved at, 0 without one."""
    newest = saves.latest()
    if newest is None:
        return 0
    skips = read_json(newest / "state" / "run.json")["skipped"]
    for member in members:
        tensors = load_tensors(newest / "state" / f"{member.name}.safetensors")
        if adapter_parameters(member.model):  # the weights under it are where the stage found them
            load_adapter_state(member.model, part(tensors, "adapter/"))
        else:
            member.model.load_state_dict(load_weights(newest / "weights" / member.name).state_dict())
        member.model.load_LE.copy_(tensors.pop("load"))
        member.optimizer.load(part(tensors, "optimizer/"))
        if member.average is not None:
            member.average.model.load_state_dict(part(tensors, "average/"))
        member.skipped, member.skips_in_a_row = skips[member.name]
    return step_of(newest)


def notes(saves: Checkpoints, step: int) -> dict[str, Any]:
    """What `save` was given beside the members at that step; {} for nothing."""
    path = saves.root / f"step-{step:08d}" / "state" / "notes.json"
    return read_json(path) if path.exists() else {}


def state(member: Member) -> dict[str, Tensor]:
    """Everything but the weights, in one flat dictionary."""
    average = member.average.model.state_dict() if member.average else {}
    adapter = adapter_state(member.model) if adapter_parameters(member.model) else {}
    return {
        **{f"adapter/{key}": value for key, value in adapter.items()},
        **{f"optimizer/{key}": value for key, value in member.optimizer.state().items()},
        **{f"average/{key}": value for key, value in average.items()},
        "load": member.model.load_LE,
    }


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
