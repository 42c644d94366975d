"""Grading IFEval (Zhou et al. 2023, arXiv 2311.07911): which of a prompt's instructions an output follows.

An instruction is a kind ("punctuation:no_comma") and its arguments; `constraints.py` checks one. Strict asks of
the output as it is. Loose asks whether any of eight readings follows it: the output with and without its first
line, its last line and all asterisks, for models like to open with "Sure, here it is:". An empty reading follows
nothing. A prompt is followed when all its instructions are. What cannot be decided is None, at each level only
where it matters: a prompt with one instruction broken is broken, whatever the undecided one would be.

The item's facts hold the fields of the published file, `instruction_id_list` and `kwargs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from behemoth.tasks.constraints import follows
from behemoth.tasks.task import Grade, Item, Undecidable

Verdict = tuple[float | None, str]  # 1, 0 or None, and why it is None


def grade(item: Item, output: str) -> Grade:
    """Score: all instructions followed, strictly. Parts: each instruction, strict and loose, and the sums.

    "1 punctuation:no_comma" and "1 punctuation:no_comma loose" for the first instruction and so on;
    "prompt_strict", "prompt_loose"; "instruction_strict" and "instruction_loose" are the share followed of the
    item's decided instructions.
    """
    kinds, arguments = item.facts.get("instruction_id_list"), item.facts.get("kwargs")
    if not kinds or arguments is None or len(kinds) != len(arguments):
        return Grade(None, "the item needs facts instruction_id_list and kwargs, of one length")
    strict = [check(kind, args, [output]) for kind, args in zip(kinds, arguments, strict=True)]
    loose = [check(kind, args, loose_readings(output)) for kind, args in zip(kinds, arguments, strict=True)]
    parts: dict[str, float | None] = {}
    for number, kind in enumerate(kinds, 1):
        parts[f"{number} {kind}"] = strict[number - 1][0]
        parts[f"{number} {kind} loose"] = loose[number - 1][0]
    for name, verdicts in (("strict", strict), ("loose", loose)):
        decided = [score for score, _ in verdicts if score is not None]
        parts[f"prompt_{name}"] = all_followed([score for score, _ in verdicts])
        parts[f"instruction_{name}"] = sum(decided) / len(decided) if decided else None
    return Grade(parts["prompt_strict"], _why(kinds, strict, parts["prompt_strict"]), "", parts)


def check(kind: str, arguments: Mapping[str, Any], readings: Sequence[str]) -> Verdict:
    """1 if any reading follows the instruction; else None if one could not be decided; else 0."""
    undecided = ""
    for reading in readings:
        try:
            if reading.strip() and follows(kind, arguments, reading):
                return 1.0, ""
        except Undecidable as error:
            undecided = str(error)
    return (None, undecided) if undecided else (0.0, "")


def loose_readings(output: str) -> list[str]:
    """The output, and without its first line, last line, both; each also without asterisks. No reading twice."""
    lines = output.split("\n")
    cut = [output, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys(cut + [text.replace("*", "") for text in cut]))


def all_followed(scores: Sequence[float | None]) -> float | None:
    if 0.0 in scores:
        return 0.0
    return None if None in scores else 1.0


def _why(kinds: Sequence[str], verdicts: Sequence[Verdict], score: float | None) -> str:
    if score is None:
        return "; ".join(f"{kind}: {why}" for kind, (_, why) in zip(kinds, verdicts, strict=True) if why)
    broken = [kind for kind, (followed, _) in zip(kinds, verdicts, strict=True) if followed == 0]
    return f"broken: {', '.join(broken)}" if broken else ""
