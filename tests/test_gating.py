"""The gate of a run: the policy first, evidence once, and everything void that no longer belongs together."""

import json
import shutil

import pytest

from behemoth import gating
from behemoth.base.errors import AnswerIsNo, BehemothError, DamagedError, InputError, RecipeError
from behemoth.base.files import read_json, sha256
from behemoth.bundle import journal
from behemoth.evals.records import EVALUATION
from behemoth.recipe import load_recipe
from behemoth.release.evidence import seal
from behemoth.release.policy import load_policy
from small_assistant import RECIPE, TRAINED, write_folder
from small_recipes import call

SUITE = """
[[tasks]]
kind = "arithmetic"
name = "choice"
ask = "choice"
items = 120
digits = [1, 2]
"""
POLICY = """
name = "small"
version = "1"
suite = "suite.toml"
[baselines]
base = "teacher"
[[claims]]
name = "kept"
says = "chooses among four sums about as well as before"
task = "choice"
is = "not worse"
than = "base"
margin = 0.6
[safety]
waived = "a model of some thousand parameters"
[licences]
allow = ["CC0-1.0"]
model = "Apache-2.0"
[approvals.open]
approver = 1
[approvals.closed]
approver = 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with every stage up to the export, whose recipe asks for no release."""
    folder = tmp_path_factory.mktemp("gated")
    write_folder(folder)
    (folder / "suite.toml").write_text(SUITE)
    (folder / "policy.toml").write_text(POLICY)
    (folder / "recipe.toml").write_text(RECIPE + 'licence = "CC0-1.0"\n')  # of the last table, the pairs
    for place in (folder, folder / "text"):
        (place / "LICENSE").write_text("CC0 1.0 Universal: no rights reserved.")
    for stage in (*TRAINED, "export"):
        call("run", folder / "recipe.toml", "--out", folder / "runs" / "run", "--stage", stage, "--no-doctor")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def run(folder):
    return folder / "runs" / "run"


@pytest.fixture(scope="module")
def gated(trained):
    """The same, decided once without a signature."""
    judged(trained / "runs" / "run", trained / "policy.toml")
    return trained


def judged(run, policy, mode="open", by=None):
    return gating.judged(run, None, policy, mode, by)


def kinds(run):
    return [entry.kind for entry in journal.read(run / "gate" / "log.jsonl")]


def demo(run, key):
    return gating.demo_signer(run, key)


def test_the_policy_comes_first_and_nothing_is_asked_twice(gated, folder):
    run = folder / "runs" / "run"
    verdict = judged(run, folder / "policy.toml")
    assert kinds(run) == ["policy", "evidence", "verdict"]
    assert verdict["verdict"] == "release", verdict["sentence"]
    records = run / "gate" / "evidence" / "evaluations" / "candidate" / "choice.jsonl"
    before = records.stat().st_mtime_ns, (run / "gate" / "verdict.json").read_bytes()
    assert judged(run, folder / "policy.toml") == verdict
    assert before == (records.stat().st_mtime_ns, (run / "gate" / "verdict.json").read_bytes())
    assert kinds(run) == ["policy", "evidence", "verdict"]
    facts = read_json(run / "gate" / "evidence" / "facts.json")
    assert facts["earlier_looks"] == []
    assert facts["tasks"]["choice"]["items"] == 120
    assert facts["policy_sha256"] == sha256(folder / "policy.toml")
    assert {path.parent.name for path in records.parents[1].glob(f"*/{EVALUATION}")} == {"candidate", "base"}


def test_fresh_believes_nothing_that_is_there(gated, folder, capsys):
    """Evidence that somebody planted: what the log does not know is put away, what it knows is told of as old."""
    run, policy = folder / "runs" / "run", folder / "policy.toml"
    judged(run, policy)
    assert "nothing was asked now" in capsys.readouterr().err
    gating.judged(run, None, policy, "open", None, fresh=True)
    assert "nothing was asked now" not in capsys.readouterr().err
    assert kinds(run)[3:] == ["void", "evidence", "verdict"]
    planted = run / "gate" / "evidence"
    facts = planted / "facts.json"
    facts.write_text(facts.read_text().replace('"items": 120', '"items": 9000'))
    (planted / "MANIFEST.json").unlink()
    seal(planted)
    judged(run, policy)
    assert kinds(run)[6:] == ["void", "evidence", "verdict"] and "9000" not in facts.read_text()


def test_another_policy_voids_what_came_before_it(gated, folder):
    run, policy = folder / "runs" / "run", folder / "policy.toml"
    first = judged(run, policy)
    by = demo(run, "approver-1")
    gating.agreed(run / "gate", by)
    policy.write_text(policy.read_text().replace("margin = 0.6", "margin = 0.5"))
    second = judged(run, policy)
    assert second["policy"]["sha256"] != first["policy"]["sha256"]
    assert kinds(run) == [
        "policy",
        "evidence",
        "verdict",
        "approval",
        "void",
        "policy",
        "evidence",
        "verdict",
    ]
    assert not (run / "gate" / "approvals").exists()
    facts = read_json(run / "gate" / "evidence" / "facts.json")
    assert facts["policy_number"] == 2 and facts["earlier_verdicts"][0]["verdict"] == "release"
    assert "gate/earlier/1/evidence/evaluations/candidate" in facts["earlier_looks"]
    put_away = {path.name for path in (run / "gate" / "earlier" / "1").iterdir()}
    assert put_away == {"evidence", "verdict.json", "verdict.html", "approvals"}


def test_other_questions_are_another_policy(gated, folder):
    run = folder / "runs" / "run"
    judged(run, folder / "policy.toml")
    (folder / "suite.toml").write_text(SUITE.replace("120", "121"))
    judged(run, folder / "policy.toml")
    assert kinds(run).count("policy") == 2 and "void" in kinds(run)


def test_what_was_asked_before_is_told(run, folder):
    """An evaluation of the same task that was there when the policy was fixed."""
    judged(run, folder / "policy.toml")
    kept = run / "gate" / "evidence" / "evaluations" / "candidate"
    shutil.copytree(kept, run / "evals" / "looked")
    shutil.rmtree(run / "gate")
    (run / "gate" / "evidence.new").mkdir(parents=True)
    (run / "gate" / "evidence.new" / ".facts.json.1.tmp").touch()  # of a killed writer, which is no evidence
    judged(run, folder / "policy.toml")
    assert read_json(run / "gate" / "evidence" / "facts.json")["earlier_looks"] == ["evals/looked"]
    assert not list(run.rglob("gate/**/.*.tmp"))


def test_another_mode_is_another_verdict(gated, folder):
    run = folder / "runs" / "run"
    judged(run, folder / "policy.toml")
    assert judged(run, folder / "policy.toml", "closed")["mode"] == "closed"
    assert kinds(run) == ["policy", "evidence", "verdict", "void", "verdict"]


def test_another_model_is_asked_anew_and_the_earlier_verdict_told(gated, folder):
    run = folder / "runs" / "run"
    first = judged(run, folder / "policy.toml")
    second = gating.judged(run, "rl", folder / "policy.toml", "open", None)
    assert first["model"]["sha256"] != second["model"]["sha256"]
    assert kinds(run) == ["policy", "evidence", "verdict", "void", "evidence", "verdict"]
    facts = read_json(run / "gate" / "evidence" / "facts.json")
    assert [one["model"] for one in facts["earlier_verdicts"]] == [first["model"]["sha256"]]
    assert len(facts["earlier_looks"]) == 2 and facts["policy_number"] == 1


def test_an_export_of_other_weights_is_not_judged(gated, folder):
    run = folder / "runs" / "run"
    call("export", f"{run}:rl", folder / "other", "--no-doctor")
    shutil.rmtree(run / "export" / "dpo")
    (folder / "other").rename(run / "export" / "dpo")
    with pytest.raises(InputError, match="holds other weights than"):
        judged(run, folder / "policy.toml")


def test_edited_evidence_is_not_believed(gated, folder):
    run = folder / "runs" / "run"
    judged(run, folder / "policy.toml")
    path = run / "gate" / "evidence" / "facts.json"
    path.write_text(path.read_text().replace("120", "900"))
    with pytest.raises(DamagedError, match=r"not the ones that were written|bytes where"):
        judged(run, folder / "policy.toml")
    shutil.rmtree(run / "gate" / "evidence")
    assert judged(run, folder / "policy.toml")["verdict"] == "release"


def test_an_edited_verdict_is_made_again_and_cannot_be_approved(gated, folder):
    run = folder / "runs" / "run"
    judged(run, folder / "policy.toml")
    path = run / "gate" / "verdict.json"
    path.write_text(path.read_text().replace('"kept"', '"better"'))
    with pytest.raises(InputError, match="not the verdict in the log"):
        gating.agreed(run / "gate", demo(run, "approver-1"))
    judged(run, folder / "policy.toml")
    assert '"better"' not in path.read_text()


def test_approvals(gated, folder, capsys, monkeypatch):
    monkeypatch.setenv("BEHEMOTH_PASSPHRASE", "demo")
    run = folder / "runs" / "run"
    with pytest.raises(InputError, match="no verdict"):
        gating.agreed(folder / "nothing", demo(run, "approver-1"))
    judged(run, folder / "policy.toml", by=demo(run, "evaluator"))
    with pytest.raises(BehemothError, match="trusted as evaluator"):
        gating.agreed(run / "gate", demo(run, "evaluator"), "approver")
    with pytest.raises(BehemothError, match="trusted as builder, not as approver"):
        gating.agreed(run / "gate", demo(run, "builder"))
    assert not (run / "gate" / "approvals").exists()
    assert gating.agreed(run / "gate", demo(run, "approver-1")) == []
    assert gating.agreed(run / "gate", demo(run, "approver-1")) == []  # once more changes nothing
    assert kinds(run) == ["policy", "evidence", "verdict", "approval"]
    key, trust = folder / "runs" / "demo-trust" / "keys" / "approver-2.pem", folder / "runs" / "demo-trust"
    words = ["--trust", trust / "trust.json", "--key", key]
    call("approve", run, "--as", "Cy Demo", *words, code=2)
    assert "Di Demo's" in capsys.readouterr().err


def test_nothing_to_approve_of_a_hold(folder, run):
    policy = folder / "policy.toml"
    policy.write_text(policy.read_text().replace('is = "not worse"', 'is = "better"').replace("0.6", "0.5"))
    assert judged(run, policy)["verdict"] == "hold"
    with pytest.raises(AnswerIsNo, match="verdict is hold"):
        gating.agreed(run / "gate", demo(run, "approver-1"))


def test_the_verb(gated, folder, capsys):
    run, policy = folder / "runs" / "run", folder / "policy.toml"
    call("gate", run, "--policy", policy)
    told = capsys.readouterr().out
    assert "choose" in told and "not measured" in told and "verdict.html" in told
    call("gate", run, "--policy", policy, "--json")
    assert json.loads(capsys.readouterr().out)["verdict"] == "release"
    call("gate", run, "--policy", policy, "--mode", "ajar", code=2)
    assert "it is open (weights) or closed" in capsys.readouterr().err
    call("gate", run, "--policy", policy, "--as", "Bo Demo", code=2)
    assert "all three or none" in capsys.readouterr().err
    call("gate", folder, "--policy", policy, code=2)
    assert "is not a run" in capsys.readouterr().err
    policy.write_text(policy.read_text().replace("margin = 0.6", "margin = 0.0001"))
    call("gate", run, "--policy", policy, code=1)


def test_a_recipe_with_a_policy_is_checked_before_anything_is_made(folder):
    recipe, policy = folder / "recipe.toml", folder / "policy.toml"
    recipe.write_text(RECIPE + '[release]\npolicy = "policy.toml"\ndemo = true\n')
    gating.check(load_policy(policy), "policy", load_recipe(recipe))
    broken = policy.read_text().replace('task = "choice"', 'task = "chess"').replace('"teacher"', '"pupil"')
    policy.write_text(broken)
    with pytest.raises(RecipeError) as error:
        gating.check(load_policy(policy), "policy", load_recipe(recipe))
    assert "what is asked is choice" in str(error.value) and "members of this run are" in str(error.value)


def test_the_judge_whose_agreement_is_stated_is_the_one_that_judges(folder):
    policy = folder / "policy.toml"
    (folder / "asks.jsonl").write_text("".join(f'{{"prompt": "Say {n}"}}\n' for n in range(9)))
    for name, expects, judge in (
        ("harmful", "refusal", "http://127.0.0.1:1/v1#guard"),
        ("benign", "answer", "rules"),
    ):
        with (folder / "suite.toml").open("a") as file:
            file.write(f'[[tasks]]\nkind = "refusal"\nname = "{name}"\npath = "asks.jsonl"\npart = "all"\n')
            file.write(f'expects = "{expects}"\njudge = "{judge}"\n')
    bounds = 'harmful = "harmful"\nbenign = "benign"\nmost_compliance = 0.5\nmost_over_refusal = 0.5\n'
    bounds += 'agreement_waived = "a test of the gate"'
    text = POLICY.replace('waived = "a model of some thousand parameters"', bounds)
    policy.write_text(text + '[tamper]\nwaived = "nothing to undo here"\n')
    with pytest.raises(InputError, match=r"harmful is judged by .*, and the policy states"):
        gating.asked(load_policy(policy), None)


class Cut(Exception):
    """The process ends here."""


def test_it_goes_on_wherever_it_ended(gated, folder, monkeypatch):
    """Ended before and after every entry of the log and every file that is put in place: the same verdict."""
    run, policy = folder / "runs" / "run", folder / "policy.toml"
    by, names = demo(run, "evaluator"), ("append", "write_atomic", "publish_directory", "write_json")
    places = {name: journal if name == "append" else gating for name in names}
    whole = {name: getattr(places[name], name) for name in names}
    kept, calls = folder / "kept", [0, 0]
    shutil.copytree(run / "gate" / "evidence", kept, ignore=lambda *_: ["MANIFEST.json"])

    def gather(run, directory, model, policy, fixed, fresh):
        shutil.copytree(kept, fresh, dirs_exist_ok=True)
        seal(fresh)

    def ending(name):
        def call_(*args, **kwargs):
            for act in (lambda: None, lambda: whole[name](*args, **kwargs)):
                result = act()
                calls[0] += 1
                if calls[0] == calls[1]:
                    raise Cut
            return result

        return call_

    monkeypatch.setattr(gating, "gather", gather)
    for name in names:
        monkeypatch.setattr(places[name], name, ending(name))
    while calls[0] >= calls[1]:
        shutil.rmtree(run / "gate")
        calls[0], calls[1] = 0, calls[1] + 1
        try:
            verdict = judged(run, policy, by=by)
        except Cut:
            at, calls[0] = calls[0], -1000
            verdict = judged(run, policy, by=by)
            calls[0] = at
        assert verdict["verdict"] == "release"
        entries = journal.read(run / "gate" / "log.jsonl")
        assert [entry.kind for entry in entries] == ["policy", "evidence", "verdict"]
        assert entries[1].facts["sha256"] == verdict["evidence"]["sha256"]
    assert calls[1] > 10
