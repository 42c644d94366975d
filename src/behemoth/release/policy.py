"""What must be shown before a model goes out, fixed before the evaluation that is judged by it.

A policy is a TOML file: what is asked, the claims and their bars, the bounds, who must approve. Nothing is derived and
there is no clever default that would let something pass unseen: what is not measured is waived with a reason, and the
card prints the reason. The SHA-256 of the file's bytes is its name in everything that follows from it.

Its shape is that of the frameworks of Anthropic (Responsible Scaling Policy), OpenAI (Preparedness) and Google DeepMind
(Frontier Safety): thresholds in advance, then the evaluation, then named people. Left out: who may change a policy, and
when. A changed file is another policy, and the journal of a run shows both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from behemoth.base.config import load_toml, nearest, problems_of
from behemoth.base.errors import InputError, RecipeError
from behemoth.base.files import expanded, sha256
from behemoth.evals.records import HELD_OUT
from behemoth.release.evidence import CANDIDATE

Mode = Literal["open", "closed"]
MODES: tuple[Mode, ...] = get_args(Mode)
Is = Literal["better", "not worse", "at least", "at most"]
COMPARED: tuple[Is, ...] = ("better", "not worse")  # with a baseline; the others have a bar of their own
NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"  # what may be the name of a folder everywhere
FILES = (".toml", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")
WHY = Field(None, min_length=10, max_length=2000)  # a waiver is a sentence


class Strict(BaseModel):
    """A table; what its values contradict in each other is told with everything else that is wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=2000)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if problems := list(self.problems()):
            raise ValueError("\n".join(problems))
        return self

    def problems(self) -> Iterator[str]:
        yield from ()


class Claim(Strict):
    """`of` is better or not worse `than` a baseline on a task, or its score lies at least or at most at a bar."""

    name: str = Field(pattern=NAME)
    says: str = Field(min_length=1, max_length=300)
    task: str
    is_: Is = Field(alias="is")
    of: str = CANDIDATE
    than: str | None = None
    margin: float | None = Field(None, ge=0)
    bar: float | None = Field(None, ge=0)
    items: int = Field(0, ge=0)
    modes: tuple[Mode, ...] = ("open", "closed")

    def problems(self) -> Iterator[str]:
        if not self.says.isprintable():
            yield "says: one line of text"
        if not self.modes:
            yield "modes: open, closed or both"
        yield from self._problems_compared() if self.is_ in COMPARED else self._problems_barred()

    def _problems_compared(self) -> Iterator[str]:
        if self.than is None:
            yield f"is = {self.is_!r} needs than, the name of a baseline"
        if self.than == self.of:
            yield f"than = {self.than!r} is the very model that is claimed about; compare it with another"
        elif self.than == CANDIDATE:
            yield f"than = {CANDIDATE!r}: a claim is of the candidate, or of a baseline; turn it round"
        if self.bar is not None:
            yield f"bar belongs to 'at least' and 'at most'; {self.is_!r} has a margin"
        if self.is_ == "not worse" and not self.margin:
            yield "is = 'not worse' needs a margin above 0: by how much worse would still be accepted"
        if self.margin is not None and self.margin >= 1:
            yield f"margin = {self.margin:g}: a share of 1 or bits per byte, so below 1; 0.02 is two points"

    def _problems_barred(self) -> Iterator[str]:
        if not self.bar:
            yield f"is = {self.is_!r} needs a bar above 0"
        for key in ("than", "margin"):
            if getattr(self, key) is not None:
                yield f"{key} belongs to 'better' and 'not worse'; {self.is_!r} has a bar"
        if self.is_ == "at least" and self.bar == 1 and self.task != HELD_OUT:
            yield "bar = 1 with 'at least' can never be shown: no number of items proves that none fails"


class Stops(Strict):
    """What holds the release whatever the claims say; False: not looked at, and said so.

    least_checked: share of the doctor's checks that must have had what they need.
    """

    doctor: bool = True
    least_checked: float = Field(0.5, ge=0, le=1)
    receipt: bool = True
    clean_source: bool = False


class Contamination(Strict):
    """most_dirty: share of a task's items, claimed or bounded, that were found in the text that was looked up.
    most_unseen: share that is too short to be looked up (under nine words); a policy that accepts more knows why."""

    most_dirty: float = Field(ge=0, le=1)
    most_unseen: float = Field(0.05, ge=0, le=1)
    clean_too: bool = True


class Safety(Strict):
    """Harmful compliance and over-refusal together, each the upper end of an interval; or why neither is measured.

    judge: what tells a refusal from an answer. labelled: answers that people have judged, with which it must agree at
    least so far; or agreement_waived, why that is not measured.
    """

    harmful: str | None = None
    most_compliance: float | None = Field(None, gt=0, lt=1)
    benign: str | None = None
    most_over_refusal: float | None = Field(None, gt=0, lt=1)
    judge: str = "rules"
    labelled: str | None = None
    least_agreement: float | None = Field(None, gt=0, lt=1)
    agreement_waived: str | None = WHY
    waived: str | None = WHY

    def problems(self) -> Iterator[str]:
        wanted = ("harmful", "most_compliance", "benign", "most_over_refusal")
        yield from waived_or_whole(self, wanted)
        if self.harmful is not None and self.harmful == self.benign:
            yield f"harmful and benign are both {self.harmful!r}; two tasks are needed"
        if self.waived is None:
            yield from self._problems_of_agreement()

    def _problems_of_agreement(self) -> Iterator[str]:
        given = [key for key in ("labelled", "least_agreement") if getattr(self, key) is not None]
        if self.agreement_waived is not None and given:
            yield f"agreement_waived, and {given[0]} as well: either it is measured or it is not"
        if self.agreement_waived is None and len(given) < 2:
            yield (
                "labelled, answers that people have judged, and least_agreement, how far the judge must agree with "
                'them; both, or agreement_waived = "why it is not measured"'
            )


class Tamper(Strict):
    """An attacker with the weights: how many steps of an adapter undo the mitigation; or why that is not measured."""

    undo: str | None = None
    exam: str | None = None
    steps: int = Field(64, gt=0)
    rank: int = Field(8, gt=0)
    seeds: int = Field(1, gt=0)
    least_steps: int | None = Field(None, gt=0)
    waived: str | None = WHY

    def problems(self) -> Iterator[str]:
        yield from waived_or_whole(self, ("undo", "exam", "least_steps"))
        if self.least_steps is not None and self.least_steps > self.steps:
            yield f"least_steps = {self.least_steps} is more than steps = {self.steps}, which are all that is tried"


class Licences(Strict):
    """allow: SPDX identifiers that an input may have. model: what the weights go out under."""

    allow: tuple[str, ...]
    model: str = Field(min_length=1)

    def problems(self) -> Iterator[str]:
        if not self.allow:
            yield "allow: no licence at all; name those that an input may have"


class Approvals(Strict):
    """How many of each role, and how many distinct people in all. Whoever holds a builder's key neither evaluates nor
    approves, unless it is said."""

    evaluator: int = Field(0, ge=0)
    approver: int = Field(0, ge=0)
    people: int = Field(1, ge=1)
    builder_may_approve: bool = False
    builder_may_evaluate: bool = False

    def problems(self) -> Iterator[str]:
        asked = self.evaluator + self.approver
        if asked < self.people:
            yield f"people = {self.people}, but the approvals asked for are {asked}; each is one person's"


class ByMode(Strict):
    open: Approvals | None = None
    closed: Approvals | None = None


class Policy(Strict):
    """`sha256` is of the file's bytes, "" of one that was made from a dictionary."""

    name: str = Field(pattern=NAME)
    version: str = Field(min_length=1, max_length=64)
    level: float = Field(0.95, ge=0.9, lt=1)
    suite: str | None = None
    exam: bool = False
    held_out: bool = False
    gguf: bool = False  # a file for llama.cpp goes out too
    baselines: dict[str, str] = {}
    claims: tuple[Claim, ...]
    stops: Stops = Stops()
    contamination: Contamination | None = None
    safety: Safety
    tamper: Tamper | None = None
    licences: Licences
    approvals: ByMode

    _sha256: str = PrivateAttr("")

    @property
    def sha256(self) -> str:
        return self._sha256

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those in which this policy can release anything: somebody is to approve, and each has a claim."""
        return tuple(mode for mode in MODES if getattr(self.approvals, mode))

    def claims_of(self, mode: Mode) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if mode in claim.modes)

    def approvals_of(self, mode: Mode) -> Approvals:
        """InputError: the policy names nobody who could approve a release in this mode."""
        found: Approvals | None = getattr(self.approvals, mode)
        if found is None:
            raise InputError(
                f"policy {self.name} has no [approvals.{mode}], so nothing goes out {mode} under it"
            )
        return found

    def problems(self) -> Iterator[str]:
        if not self.claims:
            yield "claims: a policy has one [[claims]] table or more"
        if not self.modes:
            yield "approvals: give [approvals.open], [approvals.closed] or both"
        for name in self.baselines:
            if name == CANDIDATE or not re.fullmatch(NAME, name):
                yield f"baselines.{name}: small letters, digits, - and _, and not {CANDIDATE}"
        yield from (f"claims.{problem}" for problem in self._problems_of_claims())
        for mode in self.modes:
            if not any(claim.of == CANDIDATE for claim in self.claims_of(mode)):
                yield (
                    f"approvals.{mode}: no claim about the candidate is made in this mode, and what claims nothing is "
                    "not released"
                )
        if not self.suite and not self.exam and not self.held_out:
            yield "nothing is asked: give suite, exam = true or held_out = true"
        if self.approvals.open and self.safety.harmful and self.tamper is None:
            yield (
                "[tamper] missing: for open weights a mitigation counts only if it is not undone at once; measure it, "
                'or say waived = "why not"'
            )

    def _problems_of_claims(self) -> Iterator[str]:
        known = [CANDIDATE, *self.baselines]
        for number, claim in enumerate(self.claims):
            if any(other.name == claim.name for other in self.claims[:number]):
                yield f"{number}.name = {claim.name!r}: another claim has that name"
            for key, name in (("of", claim.of), ("than", claim.than)):
                if name is not None and name not in known:
                    yield f"{number}.{key} = {name!r}: not one of [baselines]{nearest(name, known)}"
            for mode in claim.modes:
                if mode not in self.modes:
                    yield f"{number}.modes: {mode}, but there is no [approvals.{mode}]; say who approves"
            if claim.task == HELD_OUT and not self.held_out:
                yield f"{number}.task = {HELD_OUT!r} needs held_out = true"


def waived_or_whole(table: Safety | Tamper, wanted: Sequence[str]) -> Iterator[str]:
    if table.waived is not None:
        if given := sorted(table.model_fields_set - {"waived"}):
            yield f"waived, and {given[0]} as well: either it is measured or it is not"
    elif missing := [name for name in wanted if getattr(table, name) is None]:
        yield f'{" and ".join(missing)} missing; all of it, or waived = "why it is not measured"'


def load_policy(path: Path) -> Policy:
    """Read a policy; the files that it names lie beside it. RecipeError: what is wrong with it, all at once."""
    policy = parse_policy(load_toml(path), str(path))
    tables = {"safety": ("judge", "labelled"), "tamper": ("undo", "exam")}
    changes: dict[str, Any] = {"suite": _beside(policy.suite, path)}
    for name, keys in tables.items():
        if (table := getattr(policy, name)) is not None:
            changes[name] = table.model_copy(update={key: _beside(getattr(table, key), path) for key in keys})
    policy = policy.model_copy(update=changes)
    policy._sha256 = policy_sha256(path)
    return policy


def _beside(name: str | None, policy: Path) -> str | None:
    """A file of the policy's folder; a word such as "arithmetic" or "rules", and an address, stay as they are."""
    is_file = name is not None and Path(name).suffix in FILES and "://" not in name
    return str(policy.absolute().parent / expanded(str(name))) if is_file else name


def policy_sha256(path: Path) -> str:
    return sha256(path)


def parse_policy(data: Mapping[str, Any], where: str = "policy") -> Policy:
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        raise RecipeError(where, list(one_by_one(error))) from None


def one_by_one(error: ValidationError) -> Iterator[str]:
    """A table that finds several contradictions in itself raises them as one error, a line each."""
    for said, item in zip(problems_of(error, Policy), error.errors(include_url=False), strict=True):
        first, *others = said.split("\n")
        table = ".".join(map(str, item["loc"]))
        yield first
        yield from (f"{table}: {other}" if table else other for other in others)
