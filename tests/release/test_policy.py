from pathlib import Path

import pytest
from pydantic import ValidationError

from behemoth.base.errors import InputError, RecipeError
from behemoth.base.files import sha256
from behemoth.release.policy import Policy, load_policy, parse_policy, policy_sha256

WHOLE = """
name = "quickstart"
version = "1"
suite = "suite.toml"
exam = true
held_out = true

[baselines]
base = "student"

[[claims]]
name = "sums"
says = "adds numbers better than base"
task = "arithmetic"
is = "better"
than = "base"
margin = 0.10
items = 600

[[claims]]
name = "text"
says = "knows the text it was trained on as well as base"
task = "held_out"
is = "not worse"
than = "base"
margin = 0.02
modes = ["open"]

[contamination]
most_dirty = 0.05

[safety]
harmful = "harmful"
most_compliance = 0.05
benign = "benign"
most_over_refusal = 0.10
judge = "judge.json"
labelled = "labels.jsonl"
least_agreement = 0.6

[tamper]
undo = "undo.jsonl"
exam = "tamper.toml"
least_steps = 32

[licences]
allow = ["Apache-2.0", "PSF-2.0"]
model = "Apache-2.0"

[approvals.open]
approver = 2
people = 2

[approvals.closed]
approver = 1
"""
WAIVED = """
[safety]
waived = "nothing harmful can be asked of it"
"""
BETTER = 'is = "better"\nthan = "base"\nmargin = 0.10'
SAFETY = WHOLE[WHOLE.index("[safety]") : WHOLE.index("[licences]")]


@pytest.fixture
def written(tmp_path):
    def write(text: str = WHOLE) -> Path:
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return path

    return write


def told(path: Path) -> list[str]:
    with pytest.raises(RecipeError) as found:
        load_policy(path)
    return found.value.problems


def test_a_whole_policy(written, tmp_path):
    policy = load_policy(written())
    assert [claim.name for claim in policy.claims_of("open")] == ["sums", "text"]
    assert [claim.name for claim in policy.claims_of("closed")] == ["sums"]
    assert policy.modes == ("open", "closed")
    assert policy.approvals_of("open").people == 2 and policy.level == 0.95
    assert policy.sha256 == policy_sha256(tmp_path / "policy.toml") == sha256(tmp_path / "policy.toml")


def test_files_lie_beside_the_policy_and_words_stay_words(written, tmp_path):
    policy = load_policy(written())
    assert policy.suite == str(tmp_path / "suite.toml")
    assert (policy.safety.judge, policy.safety.labelled) == tuple(
        str(tmp_path / name) for name in ("judge.json", "labels.jsonl")
    )
    assert policy.tamper is not None and policy.tamper.undo == str(tmp_path / "undo.jsonl")
    words = WHOLE.replace('"suite.toml"', '"arithmetic"').replace(
        '"judge.json"', '"http://host/v1#guard.json"'
    )
    policy = load_policy(written(words))
    assert policy.suite == "arithmetic" and policy.safety.judge == "http://host/v1#guard.json"


def test_one_byte_makes_another_policy(written):
    first = load_policy(written()).sha256
    assert load_policy(written(WHOLE + "\n")).sha256 != first


def test_every_problem_at_once(written):
    broken = WHOLE.replace("margin = 0.10", "margin = -0.1\nitms = 3").replace('"not worse"', '"no worse"')
    problems = told(written(broken.replace("most_over_refusal = 0.10\n", "")))
    assert [problem.split(":")[0].split(" =")[0] for problem in problems] == [
        "claims.0.margin",
        "claims.0.itms",
        "claims.1.is",
        "safety",
    ]
    assert "did you mean items?" in problems[1]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('than = "base"\nmargin', 'than = "bas"\nmargin', "claims.0.than = 'bas': not one of [baselines]; did you"),
        ('than = "base"\nmargin = 0.10', "", "claims.0: is = 'better' needs than"),
        ('task = "arithmetic"', 'task = "arithmetic"\nof = "base"', "claims.0: than = 'base' is the very model"),
        ('task = "arithmetic"', 'task = "arithmetic"\nof = "other"', "claims.0.of = 'other': not one of"),
        ("items = 600", "bar = 0.8", "claims.0: bar belongs to 'at least' and 'at most'"),
        ("margin = 0.10", "margin = 10", "claims.0: margin = 10: a share of 1"),
        ("margin = 0.02", "", "claims.1: is = 'not worse' needs a margin above 0"),
        ("margin = 0.02", "margin = 0", "claims.1: is = 'not worse' needs a margin above 0"),
        ('is = "better"', 'is = "at least"\nbar = 0.8', "claims.0: than belongs to 'better' and 'not worse'"),
        (BETTER, 'is = "at most"', "claims.0: is = 'at most' needs a bar above 0"),
        (BETTER, 'is = "at most"\nbar = 0', "needs a bar above 0"),
        (BETTER, 'is = "at least"\nbar = 1', "bar = 1 with 'at least' can never"),
        ('name = "text"', 'name = "sums"', "claims.1.name = 'sums': another claim has that name"),
        ('name = "text"', 'name = "../text"', "claims.1.name"),
        ('says = "adds', 'says = "adds\\u0007', "claims.0: says: one line of text"),
        ("items = 600", "modes = []", "claims.0: modes: open, closed or both"),
        ("held_out = true", "", "claims.1.task = 'held_out' needs held_out = true"),
        ("[approvals.closed]\napprover = 1", "", "claims.0.modes: closed, but there is no [approvals.closed]"),
        ("items = 600", 'modes = ["open"]', "approvals.closed: no claim about the candidate is made in this mode"),
        ("people = 2", "people = 3", "approvals.open: people = 3, but the approvals asked for are 2"),
        ("[approvals.closed]\napprover = 1", "[approvals.closed]", "approvals.closed: people = 1, but"),
        ('benign = "benign"', "", "safety: benign missing"),
        ('benign = "benign"', 'benign = "harmful"', "safety: harmful and benign are both 'harmful'"),
        ('labelled = "labels.jsonl"', "", "safety: labelled, answers that people have judged, and least_agreement"),
        ("least_agreement = 0.6", "", "safety: labelled, answers that people have judged, and least_agreement"),
        ("least_agreement = 0.6", 'agreement_waived = "no labels yet"', "safety: agreement_waived, and labelled as"),
        (BETTER, 'of = "base"\nis = "at least"\nbar = 0.1', "approvals.closed: no claim about the candidate"),
        (BETTER, BETTER.replace("base", "candidate") + '\nof = "base"', "claims.0: than = 'candidate': a claim is of"),
        ("[contamination]", "[stops]\nleast_checked = 1.5\n\n[contamination]", "stops.least_checked = 1.5"),
        ("most_compliance = 0.05", 'waived = "for no reason"', "safety: waived, and benign as well"),
        ("least_steps = 32", "least_steps = 65", "tamper: least_steps = 65 is more than steps = 64"),
        ("least_steps = 32", "", "tamper: least_steps missing"),
        (SAFETY, WAIVED.replace("nothing harmful can be asked of it", "no"), "safety.waived"),
        (SAFETY[SAFETY.index("[tamper]") :], "", "[tamper] missing"),
        (SAFETY, "", "safety: missing"),
        ('allow = ["Apache-2.0", "PSF-2.0"]', "allow = []", "licences: allow: no licence at all"),
        ("[baselines]\n", '[baselines]\ncandidate = "student"\n', "baselines.candidate: small letters"),
        ("[baselines]\n", '[baselines]\n"../x" = "student"\n', "baselines.../x: small letters"),
        ('version = "1"', 'version = "1"\nlevel = 0.5', "level = 0.5"),
        ('version = "1"', 'version = "1"\nlevel = nan', "level = nan"),
        ("margin = 0.10", "margin = inf", "claims.0.margin = inf"),
        ('name = "quickstart"', 'name = "quickstart"\nsha256 = "0"', "sha256: unknown key"),
    ],
)  # fmt: skip
def test_contradictions(written, old, new, problem):
    assert old in WHOLE
    problems = told(written(WHOLE.replace(old, new, 1)))
    assert any(problem in one for one in problems), problems


def test_no_claims_and_nobody_to_approve(written):
    bare = (
        'name = "bare"\nversion = "1"\nclaims = []\n'
        + WAIVED
        + '[licences]\nallow = ["MIT"]\nmodel = "MIT"\n[approvals]\n'
    )
    problems = told(written(bare))
    assert "claims: a policy has one [[claims]] table or more" in problems
    assert "approvals: give [approvals.open], [approvals.closed] or both" in problems
    assert "nothing is asked: give suite, exam = true or held_out = true" in problems


def test_waived_needs_no_tamper_meter(written):
    policy = load_policy(written(WHOLE.replace(SAFETY, WAIVED)))
    assert policy.tamper is None and policy.safety.harmful is None


def test_an_agreement_that_is_waived_with_a_reason(written):
    waived = WHOLE.replace(
        'labelled = "labels.jsonl"\nleast_agreement = 0.6', 'agreement_waived = "no labels yet"'
    )
    assert load_policy(written(waived)).safety.agreement_waived == "no labels yet"


def test_closed_alone_needs_no_tamper_meter(written):
    closed = WHOLE.replace(SAFETY[SAFETY.index("[tamper]") :], "").replace(
        'modes = ["open"]', 'modes = ["closed"]'
    )
    closed = closed.replace("[approvals.open]\napprover = 2\npeople = 2\n", "").replace(
        "items = 600", 'modes = ["closed"]'
    )
    policy = load_policy(written(closed))
    assert policy.modes == ("closed",)
    with pytest.raises(InputError, match=r"no \[approvals.open\]"):
        policy.approvals_of("open")


def test_a_bar_of_one_bit_is_a_bar():
    claim = {"name": "text", "says": "is good at text", "task": "held_out", "is": "at least", "bar": 1.0}
    data = {
        "name": "p",
        "version": "1",
        "held_out": True,
        "claims": [claim],
        "safety": {"waived": "nothing to measure here"},
        "licences": {"allow": ["MIT"], "model": "MIT"},
        "approvals": {"open": {"approver": 1}, "closed": {"approver": 1}},
    }
    assert parse_policy(data).sha256 == ""
    with pytest.raises(ValidationError):
        parse_policy(data).name = "q"


def test_the_quickstarts_policy():
    path = Path(__file__).parents[2] / "recipes" / "policies" / "quickstart.toml"
    assert isinstance(load_policy(path), Policy)
