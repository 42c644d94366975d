"""What a run needs to go on as if nothing had happened: every member's weights, and the state around them.

    step-00000400/
      weights/MEMBER/          config.json and model.safetensors, a model that anything can open
      state/MEMBER.safetensors optimizer state, the experts' load of the last step, the running average
      state/run.json           the step, and the steps each member left out

No state of a random generator is kept, because nothing in a step is random: the batch is a function of the step.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from behemoth.base.files import read_json, write_json
from behemoth.model.weights import load_weights, save_weights
from behemoth.train.checkpoint import Checkpoints, load_tensors, save_tensors, step_of
from behemoth.train.loop import Member


def save(saves: Checkpoints, step: int, members: list[Member], tokenizer_sha256: str) -> Path | None:
    """Publish a checkpoint; None when the disk refused it (see `Checkpoints.save`)."""

    def write(directory: Path) -> None:
        for member in members:
            save_weights(member.model, directory / "weights" / member.name, tokenizer_sha256=tokenizer_sha256)
            save_tensors(directory / "state" / f"{member.name}.safetensors", state(member))
        skips = {member.name: [member.skipped, member.skips_in_a_row] for member in members}
        write_json(directory / "state" / "run.json", {"step": step, "skipped": skips})

    return saves.save(step, write, {"members": [member.name for member in members]})


def restore(saves: Checkpoints, members: list[Member]) -> int:
    """Load the newest good checkpoint into `members`; returns the step it was saved at, 0 without one."""
    newest = saves.latest()
    if newest is None:
        return 0
    skips = read_json(newest / "state" / "run.json")["skipped"]
    for member in members:
        member.model.load_state_dict(load_weights(newest / "weights" / member.name).state_dict())
        tensors = load_tensors(newest / "state" / f"{member.name}.safetensors")
        member.model.load_LE.copy_(tensors.pop("load"))
        member.optimizer.load(part(tensors, "optimizer/"))
        if member.average is not None:
            member.average.model.load_state_dict(part(tensors, "average/"))
        member.skipped, member.skips_in_a_row = skips[member.name]
    return step_of(newest)


def state(member: Member) -> dict[str, Tensor]:
    """Everything but the weights, in one flat dictionary."""
    average = member.average.model.state_dict() if member.average else {}
    return {
        **{f"optimizer/{key}": value for key, value in member.optimizer.state().items()},
        **{f"average/{key}": value for key, value in average.items()},
        "load": member.model.load_LE,
    }


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
