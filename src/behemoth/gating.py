"""`behemoth gate` and `behemoth approve`: a policy is fixed, evidence is gathered under it, and people agree.

    RUN/gate/log.jsonl       what was decided, in order, each entry chained to the one before
    RUN/gate/policy.toml     the policy in force, byte for byte
    RUN/gate/evidence/       what the verdict rests on (release/evidence.py)
    RUN/gate/verdict.json    the decision, with verdict.dsse.json (signed) and verdict.html (drawn)
    RUN/gate/approvals/      who agreed
    RUN/gate/earlier/N/      what a later policy, model or verdict made void

The policy comes first: evidence counts only if it was gathered after the policy that it is judged by was written into
the log, with the hash of every question and file that it names. Another policy, or another question, voids what was
gathered before; how many policies and verdicts there were, and what the run's models had already been asked, is
counted and told. What is asked is the exported directory, the very bytes that would go out.

Everything goes on where it stopped, for the log says what holds, and what it does not say is done again:

    the policy     of the newest `policy` entry; gate/policy.toml is a copy of it
    the evidence   of the newest `evidence` entry, unless a later `void` names it; the directory must have its hash
    the verdict    likewise of the newest `verdict` entry; what it was signed and approved for is that file's hash
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from behemoth import practice, tamper
from behemoth.base.errors import AnswerIsNo, InputError, RecipeError
from behemoth.base.files import (
    MANIFEST,
    publish_directory,
    read_json,
    remove_tree,
    sha256,
    write_atomic,
    write_json,
)
from behemoth.base.logs import say
from behemoth.build import CONTROL
from behemoth.bundle import dsse, journal
from behemoth.bundle.keys import PrivateKey, read_private
from behemoth.bundle.names import APPROVALS, EVIDENCE, LOG, PAGE, POLICY, SIGNED, VERDICT
from behemoth.bundle.refusals import Refused, refused
from behemoth.bundle.trust import APPROVER, BUILDER, DEMO_PASSPHRASE, Trust, make_demo, read_trust
from behemoth.data.corpus import Corpus
from behemoth.data.overlap import Overlap, indexed, unread
from behemoth.doctor.examination import as_json as examined
from behemoth.evals import contamination
from behemoth.evals.backends import open_backend
from behemoth.evals.judging import agreement
from behemoth.evals.records import EVALUATION, Evaluation, read_summary
from behemoth.evals.results import file_name
from behemoth.examine import examine
from behemoth.export.hf import exporting
from behemoth.model.config import TEACHER
from behemoth.model.cost import count_parameters
from behemoth.model.identity import weight_files
from behemoth.model.open import Opened, locate, open_model
from behemoth.questions import HELD_OUT, beginnings, put_by, put_to
from behemoth.recipe import Recipe, load_recipe, resolve
from behemoth.release import approvals, licences, provenance
from behemoth.release.evidence import (
    CANDIDATE,
    DOCTOR,
    EVALUATIONS,
    FACTS,
    JUDGE,
    PROVENANCE,
    RECEIPT,
    TAMPER,
    Evidence,
    digest,
    read_evidence,
    seal,
)
from behemoth.release.gate import decide
from behemoth.release.package import GATE
from behemoth.release.policy import MODES, Mode, Policy, load_policy
from behemoth.release.publish import alone_in
from behemoth.releasing import GGUF_RECEIPT, write_gguf
from behemoth.report import verdict as drawing
from behemoth.rundir import SETTLED, now
from behemoth.tasks import suite as suites
from behemoth.tasks.judge import judge_of, read_labels
from behemoth.tasks.refusal import Judge, Part
from behemoth.tasks.suite import Suite
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.interrupt import leaving
from behemoth.train.machine import device

WIDTH = 110  # of what is printed
AFTER_THE_VERDICT = (VERDICT, SIGNED, PAGE, APPROVALS)
FRESH, EARLIER = "evidence.new", "earlier"
DEMO_TRUST = "demo-trust"  # beside the runs: private keys never lie in one


@dataclass(frozen=True)
class Signer:
    """Somebody with a key that the trust file knows."""

    name: str
    key: PrivateKey
    trust: Trust


def demo_signer(run: Path, key: str) -> Signer:
    """One of the demo people, whose keys lie beside the run."""
    trust = make_demo(run.absolute().parent / DEMO_TRUST)
    private, lab = read_private(trust.parent / "keys" / f"{key}.pem", DEMO_PASSPHRASE), read_trust(trust)
    return Signer(lab.key(private.public.id).name, private, lab)


def check(policy: Policy, where: str, recipe: Recipe | None) -> Suite:
    """What a policy asks. RecipeError, before anything is trained or logged: it names a task or model that is none."""
    suite = asked(policy, recipe)
    tasks = [task.name for task in suite.tasks] + [HELD_OUT] * policy.held_out
    problems = [
        f"{key} = {task!r}: what is asked is {', '.join(tasks)}"
        for key, task in (
            *((f"claims.{claim.name}.task", claim.task) for claim in policy.claims),
            ("safety.harmful", policy.safety.harmful),
            ("safety.benign", policy.safety.benign),
        )
        if task is not None and task not in tasks
    ]
    members = [TEACHER, *(student.name for student in recipe.students), *recipe.stages] if recipe else []
    problems += [
        f"baselines.{name} = {spec!r}: no such path, and the members of this run are {', '.join(members)}"
        for name, spec in policy.baselines.items()
        if recipe
        and spec.removesuffix(CONTROL) not in members
        and not Path(spec).exists()
        and not is_elsewhere(spec)
    ]
    if problems:
        raise RecipeError(where, problems)
    return suite


def is_elsewhere(spec: str) -> bool:
    """On the Hub or behind a server."""
    return "://" in spec or spec.startswith("hf:")


def signer(who: str, key: Path, trust: Path) -> Signer:
    """InputError: the key is another person's. Refused: the trust file does not know it, or no more."""
    private, lab = read_private(key), read_trust(trust, remember=True)
    known = lab.key(private.public.id)
    if known.name != who:
        raise InputError(f"--as {who}: the key in {key} is {known.name}'s; sign as yourself")
    return Signer(who, private, lab)


# --- the verbs ----------------------------------------------------------------------------------------------


def gate(
    spec: str,
    policy: Path,
    mode: str,
    who: str | None,
    key: Path | None,
    trust: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Decide, tell, and leave with 1 unless the verdict is release. fresh: nothing that was answered before counts."""
    if mode not in MODES:
        raise InputError(f"--mode {mode}: it is open (weights) or closed (an API)")
    if len({who is None, key is None, trust is None}) > 1 and who is not key:
        raise InputError("a verdict is signed with --as NAME --key FILE --trust FILE; give all three or none")
    by = signer(who, key, trust) if who and key and trust else None
    run, member = placed(spec)
    with leaving("the same command goes on from here"):
        verdict = judged(run, member, policy, "open" if mode == "open" else "closed", by, fresh)
    if as_json:
        print(json.dumps(verdict | {"page": str(run / GATE / PAGE)}))
    else:
        tell(run, verdict)
    if verdict["verdict"] != "release":
        sys.exit(AnswerIsNo.exit_code)


def approve(run: str, who: str, key: Path, role: str | None, note: str, trust: Path, as_json: bool) -> None:
    """Sign the verdict in force, and tell what is still missing."""
    place = placed(run)[0] / GATE
    missing = agreed(place, signer(who, key, trust), role, note)
    if as_json:
        print(json.dumps({"approvals": str(place / APPROVALS), "missing": missing}))
        return
    say(f"{who} approves of {place / VERDICT}")
    print("\n".join(f"still missing: {what}" for what in missing) or "every approval is there")


def placed(spec: str) -> tuple[Path, str | None]:
    """'RUN:member' or 'RUN' as a run directory and the member."""
    run, member = Path(spec), None
    if not run.exists() and ":" in spec:
        before, _, member = spec.rpartition(":")
        run = Path(before)
    if not any(run.glob("*/checkpoints")):
        raise InputError(f"{run} is not a run (it has no */checkpoints); name one, or RUN:MEMBER")
    return run, member


# --- the decision -------------------------------------------------------------------------------------------


def judged(
    run: Path, member: str | None, policy: Path, mode: Mode, by: Signer | None, fresh: bool = False
) -> dict[str, Any]:
    """Everything from the policy to the signed, drawn verdict; what is finished already is not done again, but with
    `fresh`: an evaluator who was handed a run need not believe its answers."""
    if by is not None and (  # before minutes are spent
        problems := approvals.unfit_evaluator(
            load_policy(policy), mode, by.key.public.id, by.trust, under=by.trust.version
        )
    ):
        raise refused(problems)
    place = run / GATE
    place.mkdir(exist_ok=True)
    with alone_in(place):
        return _judged(run, member, policy, mode, by, fresh)


def _judged(
    run: Path, member: str | None, policy: Path, mode: Mode, by: Signer | None, fresh: bool
) -> dict[str, Any]:
    place = run / GATE
    sweep(place)
    recipe = load_recipe(run / SETTLED) if (run / SETTLED).exists() else None
    rules = _fix(run, policy, recipe)
    if fresh:
        remove_tree(place / FRESH)
        if (place / EVIDENCE).exists():
            void(place, "everything is asked anew", (EVIDENCE, *AFTER_THE_VERDICT))
    before = in_force(place, "evidence")
    evidence = gathered(run, member, rules, recipe)
    if before and before == in_force(place, "evidence"):
        say(f"nothing was asked now: the evidence is of {evidence.facts['finished']}; --fresh asks anew")
    verdict = decide(rules, mode, evidence)
    text = (json.dumps(verdict, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if not ((place / VERDICT).exists() and (place / VERDICT).read_bytes() == text):
        if any((place / name).exists() for name in AFTER_THE_VERDICT):
            void(place, "another verdict was reached", AFTER_THE_VERDICT)
        write_atomic(place / VERDICT, text)
    facts = {
        "sha256": sha256(place / VERDICT),
        "verdict": verdict["verdict"],
        "mode": mode,
        "model": verdict["model"]["sha256"],
        "policy": verdict["policy"]["sha256"],
        "evidence": evidence.sha256,
    }
    entry = in_force(place, "verdict")
    if entry is None or entry.facts != facts:
        entry = journal.append(place / LOG, "verdict", facts)
    if by is not None:
        told = approvals.verdict_statement(verdict, facts["sha256"], entry.sha256, by.trust.demo)
        write_json(place / SIGNED, dsse.sign(told, dsse.IN_TOTO, [by.key]).as_dict())
    drawing.write(place, place / PAGE)
    return verdict


def fix(run: Path, policy: Path, recipe: Recipe | None) -> Policy:
    """Write the policy into the log, unless it is the one in force; another one voids all that came of the last."""
    (run / GATE).mkdir(parents=True, exist_ok=True)
    with alone_in(run / GATE):
        return _fix(run, policy, recipe)


def _fix(run: Path, policy: Path, recipe: Recipe | None) -> Policy:
    place, rules = run / GATE, load_policy(policy)
    tasks = check(rules, str(policy), recipe).tasks
    wanted = {
        "name": rules.name,
        "sha256": rules.sha256,
        "files": {os.path.relpath(path, policy.parent): sha256(path) for path in files_of(rules)},
        "tasks": {task.name: task.sha256 for task in tasks},
    }
    entries = journal.read(place / LOG) if (place / LOG).exists() else []
    last = newest(entries, "policy")
    if last is None or {key: last.facts.get(key) for key in wanted} != wanted:
        if last is not None:
            remove_tree(place / FRESH)
            void(place, "the policy was changed", (EVIDENCE, *AFTER_THE_VERDICT))
        write_atomic(place / POLICY, policy.read_bytes())
        journal.append(place / LOG, "policy", wanted | {"asked_before": asked_before(run)})
    elif not (place / POLICY).exists() or sha256(place / POLICY) != wanted["sha256"]:
        write_atomic(place / POLICY, policy.read_bytes())
    return rules


def files_of(policy: Policy) -> list[Path]:
    """What a policy names beside itself: suites, labels, a judge, what an attacker learns from."""
    named = [policy.suite, policy.safety.labelled, policy.safety.judge]
    if policy.tamper is not None:
        named += [policy.tamper.undo, policy.tamper.exam]
    return sorted({Path(name) for name in named if name and Path(name).is_file()})


def asked_before(run: Path) -> list[dict[str, Any]]:
    """What the run's models have been asked so far, by the gate too: somebody may have looked."""
    found = []
    for pattern in (f"evals/**/{EVALUATION}", f"{GATE}/**/{EVALUATION}"):
        for path in sorted(run.glob(pattern)):
            if FRESH in path.relative_to(run).parts:
                continue  # what is being gathered now
            evaluation, entries = read_summary(path.parent)
            tasks = {name: entry["sha256"] for name, entry in entries.items()}
            told = {"place": str(path.parent.relative_to(run)), "model": evaluation.sha256, "tasks": tasks}
            found.append(told)
    return found


def void(place: Path, why: str, what: Iterable[str]) -> None:
    """Note that these no longer hold, and put them away. Once more after a kill it goes on with the same number."""
    last = journal.read(place / LOG)[-1]
    facts = {"why": why, "what": list(what)}
    if (last.kind, last.facts) != ("void", facts):
        journal.append(place / LOG, "void", facts)
    number = sum(entry.kind == "void" for entry in journal.read(place / LOG))
    for name in facts["what"]:
        if (place / name).exists():
            say(f"{why}: {place / name} is put away, into {place / EARLIER}")
            free = (place / EARLIER / str(n) / name for n in count(number))
            there = next(path for path in free if not path.exists())
            there.parent.mkdir(parents=True, exist_ok=True)
            (place / name).rename(there)


def newest(entries: Sequence[journal.Entry], kind: str) -> journal.Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind == kind), None)


def in_force(place: Path, kind: str) -> journal.Entry | None:
    """The newest entry about the evidence or the verdict, unless it was made void since."""
    name = {"evidence": EVIDENCE, "verdict": VERDICT}[kind]
    for entry in reversed(journal.read(place / LOG)):
        if entry.kind == kind:
            return entry
        if entry.kind == "void" and name in entry.facts["what"]:
            return None
    return None


# --- the evidence -------------------------------------------------------------------------------------------


def gathered(run: Path, member: str | None, policy: Policy, recipe: Recipe | None) -> Evidence:
    """The evidence under the policy in force: what is there, if it is of this model, else gathered now."""
    place = run / GATE
    fixed = newest(journal.read(place / LOG), "policy")
    assert fixed is not None
    directory = exported(run, member or (recipe.stages[-1] if recipe and recipe.stages else None))
    model = open_model(directory, device=device())
    entry = in_force(place, "evidence")
    sealed = not (place / EVIDENCE).exists() and (place / FRESH / MANIFEST).exists()
    if entry and sealed and digest(place / FRESH) == entry.facts["sha256"]:
        publish_directory(place / FRESH, place / EVIDENCE)  # logged, and killed before it was put in place
    if (place / EVIDENCE).exists():
        facts = read_json(place / EVIDENCE / FACTS)
        of_these = (facts["policy_sha256"], facts["model"]["sha256"]) == (fixed.facts["sha256"], model.sha256)
        if entry is None or entry.facts["sha256"] != digest(place / EVIDENCE) or not of_these:
            void(place, "the evidence is of another model, or not the log's", (EVIDENCE, *AFTER_THE_VERDICT))
    elif entry:
        void(place, "the evidence is gone", (EVIDENCE, *AFTER_THE_VERDICT))
    if not (place / EVIDENCE).exists():
        gather(run, directory, model, policy, recipe, place / FRESH)
        told = {"sha256": digest(place / FRESH), "model": model.sha256, "policy": fixed.facts["sha256"]}
        journal.append(place / LOG, "evidence", told)
        publish_directory(place / FRESH, place / EVIDENCE)
    return read_evidence(place / EVIDENCE)


def exported(run: Path, member: str | None) -> Path:
    """The directory that would go out: the member's export, made now where there is none."""
    spec = f"{run}:{member}" if member else str(run)
    found = locate(spec)
    place = run / "export" / found.name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with exporting(open_model(spec), place):
            say(f"{spec} is exported to {place}")
    elif {path.name: sha256(path) for path in weight_files(place)} != {
        path.name: sha256(path) for path in weight_files(found)
    }:
        raise InputError(
            f"{place} holds other weights than {found}; move it away, and behemoth gate exports the newest"
        )
    return place


def gather(
    run: Path, directory: Path, model: Opened, policy: Policy, recipe: Recipe | None, fresh: Path
) -> None:
    """Ask, examine and collect into `fresh`; what a killed gathering left there is gone on with."""
    say(f"gathering evidence about {directory} under the policy {policy.name}")
    suite = asked(policy, recipe)
    asker = Asker(run, recipe, suite, policy.held_out, chat=model.turns > 0, out=fresh / EVALUATIONS)
    found = {CANDIDATE: asker.ask(CANDIDATE, str(directory))}
    found |= {name: asker.ask(name, spec) for name, spec in policy.baselines.items()}
    write_json(fresh / DOCTOR, examined(examine(str(directory))) | {"name": directory.name})
    write_atomic(fresh / RECEIPT, (directory / RECEIPT).read_bytes())
    if policy.gguf:
        with TemporaryDirectory(prefix="behemoth-gguf-") as aside:
            write_gguf(directory, Path(aside))
            write_atomic(fresh / GGUF_RECEIPT, (Path(aside) / GGUF_RECEIPT).read_bytes())
    attack = policy.tamper
    if attack and attack.undo and attack.exam and not (fresh / TAMPER).exists():
        undo = Path(attack.undo)
        try:
            found_by = tamper.meter(
                str(directory), undo, attack.exam, attack.steps, attack.rank, attack.seeds
            )
            found_by["settings"]["undo"] = undo.name
        except tamper.NothingToUndo as error:
            found_by = {"nothing_to_undo": str(error)}
        write_json(fresh / TAMPER, found_by | {"model": directory.name})
    if policy.safety.labelled:
        labelled = Path(policy.safety.labelled)
        write_json(
            fresh / JUDGE,
            agreement(judge_of(policy.safety.judge), read_labels(labelled), labelled.name),
        )
    licences.gather(run, fresh, directory.name)
    told = {"name": run.name, "sha256": model.sha256, "member": directory.name}
    write_json(fresh / PROVENANCE, provenance.gather(run, told))
    write_json(fresh / FACTS, facts_of(run, model, policy, found, recipe))
    seal(fresh)


def sweep(directory: Path) -> None:
    """Take away what a killed writer left beside its file, whoever holds the lock: it is no evidence, no approval."""
    for path in directory.rglob(".*.tmp"):
        path.unlink()


def asked(policy: Policy, recipe: Recipe | None) -> Suite:
    """The tasks of the policy: its own suite, and the exam of the recipe."""
    tasks = list(suites.load(policy.suite).tasks) if policy.suite else []
    if policy.exam:
        if recipe is None or not recipe.assistant.exam:
            raise InputError(
                f"the policy {policy.name} has exam = true, and the run's recipe has no [[assistant.exam]]"
            )
        tasks += practice.tasks_of(recipe.assistant.exam, "test", recipe.seed)
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"the policy {policy.name} asks {', '.join(twice)} twice; give one of them another name"
        )
    stated, of = judge_of(policy.safety.judge), judges_of(policy)
    for task, part in parts_of(policy).items():
        if part == "train" and task in (policy.safety.harmful, policy.safety.benign):
            raise InputError(
                f'{policy.suite}: {task} has part = "train", which a model may have learnt from; ask "test"'
            )

    for name in (policy.safety.harmful, *([policy.safety.benign] if stated.both_sides else [])):
        if name in of and of[name].sha256 != stated.sha256:
            raise InputError(
                f"{policy.suite}: {name} is judged by {of[name].name}, and the policy states the agreement of "
                f"{stated.name}; give both the same judge"
            )
    return Suite(policy.name, tuple(tasks))


def judges_of(policy: Policy) -> dict[str, Judge]:
    """Who tells a refusal from an answer, by the task of the policy's suite."""
    return suites.judges(Path(policy.suite)) if policy.suite and Path(policy.suite).is_file() else {}


def parts_of(policy: Policy) -> dict[str, Part]:
    """Which part of its prompts each task of refusals in the policy's suite asks."""
    return suites.parts(Path(policy.suite)) if policy.suite and Path(policy.suite).is_file() else {}


@dataclass(frozen=True)
class Asker:
    """How every model is asked: the same questions in the same way, each answer held against the training text."""

    run: Path
    recipe: Recipe | None
    suite: Suite
    held_out: bool
    chat: bool
    out: Path

    def ask(self, name: str, spec: str) -> Evaluation:
        """`spec`: a member of the run, or any model. Ours is scored on the run's held-out text too."""
        run, text = self.run, self.run / "data"
        whole = spec if Path(spec).exists() or is_elsewhere(spec) else f"{run}:{spec}"
        train = resolve(self.recipe).train if self.recipe else None
        ours = Path(whole.partition(":")[0]).absolute().is_relative_to(run.absolute())
        if ours and train is not None:
            tokenizer = Tokenizer.load(run / "tokenizer")
            scored = self.held_out and text.is_dir()
            found = put_to(
                open_model(whole, device=device()),
                tokenizer,
                name,
                f"{run.name}:{Path(spec).name}",
                self.suite,
                self.out,
                precision=train.precision,
                chat=self.chat,
                documents=beginnings(Corpus.open(text), tokenizer) if scored else (),
                context=train.context_length,
            )
        else:
            asking = partial(open_backend, whole, None, device())
            found = put_by(asking, name, spec, self.suite, self.out, self.chat)
        if stages := indexed(run):
            found = contamination.annotate(self.out / name, Overlap.open(stages))
        return found


def facts_of(
    run: Path,
    model: Opened,
    policy: Policy,
    found: dict[str, Evaluation],
    recipe: Recipe | None,
) -> dict[str, Any]:
    """What is judged, against what, under which policy, and what had been asked and decided before."""
    entries, judge = journal.read(run / GATE / LOG), judges_of(policy)
    fixed = newest(entries, "policy")
    assert fixed is not None
    tasks = {
        name: {
            "sha256": task.sha256,
            "items": len(task.records),
            "ask": task.ask,
            "metric": task.metric,
            "judge": judge[name].sha256 if name in judge else None,
        }
        for name, task in found[CANDIDATE].tasks.items()
    }
    seen = fixed.facts["asked_before"] + [one for one in asked_before(run) if one["place"].startswith(GATE)]
    before = {
        entry["place"]
        for entry in seen
        if any(entry["tasks"].get(name) == task["sha256"] for name, task in tasks.items())
    }
    counts = count_parameters(model.model.config)
    return {
        "model": {"name": f"{run.name}-{model.name}", "member": model.name, "sha256": model.sha256},
        "run": run.name,
        "policy_sha256": fixed.facts["sha256"],
        "policy_number": sum(entry.kind == "policy" for entry in entries),
        "earlier_verdicts": [
            {key: entry.facts.get(key) for key in ("verdict", "mode", "policy", "model")}
            for entry in entries
            if entry.kind == "verdict"
        ],
        "baselines": {
            name: {"spec": policy.baselines[name], "sha256": e.sha256}
            for name, e in found.items()
            if name != CANDIDATE
        },
        "tasks": tasks,
        "earlier_looks": sorted(before),
        "unread_stages": unread(run),  # whose text no item was held against
        "finished": max((evaluation.finished for evaluation in found.values()), default=""),
        "parameters": {"all": counts.total, "active": counts.active},
        "context_length": resolve(recipe).train.context_length if recipe else None,
        "turns": model.turns,
    }


# --- who agrees ---------------------------------------------------------------------------------------------


def agreed(place: Path, by: Signer, role: str | None = None, note: str = "") -> list[str]:
    """Sign the verdict in force; what is still missing."""
    if not place.is_dir():
        raise InputError(
            f"{place.parent} has no verdict; make one: behemoth gate {place.parent} --policy FILE"
        )
    with alone_in(place):
        return _agreed(place, by, role, note)


def _agreed(place: Path, by: Signer, role: str | None, note: str) -> list[str]:
    verdict, entry = verdict_in_force(place)
    sweep(place)
    mode, policy, keyid = verdict["mode"], load_policy(place / POLICY), by.key.public.id
    if verdict["verdict"] != "release":
        raise AnswerIsNo(
            f"{place / VERDICT}: the verdict is {verdict['verdict']}; there is nothing to approve"
        )
    roles = [name for name in by.trust.key(keyid).roles if name != BUILDER]
    if role is None and len(roles) > 1:
        raise InputError(f"--role: {by.name} signs as {' or '.join(roles)}; say as which")
    role = role or (roles[0] if roles else APPROVER)
    if problems := approvals.unfit(policy, mode, keyid, role, by.trust, under=by.trust.version):
        raise refused(problems)
    put_away(place, policy, mode, entry.facts["sha256"], by.trust)
    path = place / APPROVALS / f"{file_name(by.name)}-{role}-{keyid[:12]}.json"
    if not path.exists():
        told = approvals.approval_statement(
            verdict, entry.facts["sha256"], by.name, role, mode, note, now(), by.trust.demo
        )
        write_json(path, dsse.sign(told, dsse.IN_TOTO, [by.key]).as_dict())
    noted = {"by": by.name, "role": role, "key": keyid, "sha256": sha256(path)}
    entries = journal.read(place / LOG)
    if not any(one.number > entry.number and one.facts == noted for one in entries if one.kind == "approval"):
        journal.append(place / LOG, "approval", noted)
    drawing.write(place, place / PAGE)
    given = approvals.read_approvals(place / APPROVALS)
    return [r.message for r in approvals.check(policy, mode, verdict, entry.facts["sha256"], given, by.trust)]


def put_away(place: Path, policy: Policy, mode: Mode, verdict: str, trust: Trust) -> None:
    """Approvals that no longer count: of another verdict, by a key that was revoked, or that cannot be read."""
    stale = []
    for path in sorted((place / APPROVALS).glob("*")):
        try:
            one = approvals.read_approval(path)
            fits = one.subjects["verdict.json"] == verdict and not approvals.unfit(
                policy, mode, one.keyid, one.said["role"], trust, under=trust.version
            )
        except (Refused, KeyError):
            fits = False
        if not fits:
            stale.append(f"{APPROVALS}/{path.name}")
    if stale:
        void(place, "no longer counts", stale)


def verdict_in_force(place: Path) -> tuple[dict[str, Any], journal.Entry]:
    """InputError: there is none, or it is not the one that the log has."""
    entry = in_force(place, "verdict") if (place / LOG).exists() else None
    if entry is None or not (place / VERDICT).exists():
        raise InputError(f"{place} has no verdict; make one: behemoth gate RUN --policy FILE")
    if sha256(place / VERDICT) != entry.facts["sha256"]:
        raise InputError(f"{place / VERDICT} is not the verdict in the log; run behemoth gate again")
    return read_json(place / VERDICT), entry


# --- for people ---------------------------------------------------------------------------------------------


def tell(run: Path, verdict: dict[str, Any]) -> None:
    """Each check, the verdict in a sentence, and what was not looked at."""
    for check in verdict["checks"]:
        said = check["sentence"].removesuffix(f": {check['status']}")
        said += f" ({check['reason']})" if check["reason"] else ""
        print(textwrap.fill(said, WIDTH, initial_indent=f"{check['status']:<8} ", subsequent_indent=" " * 9))
    print(f"\n{verdict['sentence']}")
    for what in verdict["not_measured"]:
        print(textwrap.fill(f"not measured: {what}", WIDTH, subsequent_indent="  "))
    print(f"drawn: {run / GATE / PAGE}")
