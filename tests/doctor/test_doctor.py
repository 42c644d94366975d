"""No fault is missed, and no healthy model is told that it is ill."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_cases import FAULTS, HEALTHY, LLAMA3, SCOUT, make_run, patient, planted

from behemoth.doctor.examination import CHECKS, Examination, as_json, examine_patient, findings_of, show
from behemoth.doctor.patient import NotChecked, Patient, at_most
from behemoth.examine import WHOLE, examine, examine_recipe, in_little, little, models_of
from behemoth.model import llama3
from behemoth.model.cost import count_parameters
from behemoth.recipe import load_recipe, resolve

QUICKLY = 3  # healthy models that are examined by default; `slow` does them all


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("doctor"))


@pytest.fixture(scope="session")
def well(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Patient]:
    folder = tmp_path_factory.mktemp("well")
    return {name: patient(run, folder / name, name) for name in ("teacher", "student")}


def check_that_says(title: str) -> str:
    """The entry of CHECKS behind a finding, for those that make several."""
    several = {
        "sparse layers are Llama 4's": "feed-forward layers are Llama 4's",
        "logits, cached engine": "the cached engine is the model",
        "router logits, cached engine": "the cached engine is the model",
        "router logits, transformers": "transformers gives the same answers",
    }
    return several.get(title, title)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(
    well: dict[str, Patient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault = FAULTS[name]
    entry = check_that_says(fault.check)
    ill = planted(fault, well[fault.member], tmp_path / "ill", monkeypatch)
    found = {finding.check: finding for finding in findings_of(entry, CHECKS[entry], ill)}
    finding = found.get(fault.check) or found[entry]
    assert finding.verdict == "fault" and finding.meaning and finding.todo, finding


def examined(make: str, run: Path, workspace: Path) -> None:
    examinee = HEALTHY[make](run, workspace)
    findings = examine_patient(examinee)
    assert not [finding for finding in findings if finding.verdict in ("fault", "warning")]
    fewest = 25 if examinee.source or examinee.config.num_experts else 20
    assert sum(finding.verdict == "ok" for finding in findings) >= fewest


@pytest.mark.parametrize("name", list(HEALTHY)[:QUICKLY])
def test_a_healthy_model_is_well(run: Path, tmp_path: Path, name: str) -> None:
    examined(name, run, tmp_path / "well")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(HEALTHY)[QUICKLY:])
def test_every_healthy_model_is_well(run: Path, tmp_path: Path, name: str) -> None:
    examined(name, run, tmp_path / "well")


def test_every_check_has_a_fault_of_its_own() -> None:
    aimed_at = {check_that_says(fault.check) for fault in FAULTS.values()}
    assert set(CHECKS) - aimed_at == {"rounding changes little"}
    assert len(FAULTS) >= 20 and len(HEALTHY) >= 10


def test_every_finding_of_a_run_is_one_of_four(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examination = examine(f"{run}:student-control")
    assert not examination.faults and 0 < examination.seconds < 60
    told = json.loads(json.dumps(as_json(examination)))
    assert told["ok"] and {f["verdict"] for f in told["findings"]} == {"ok", "not checked"}
    show(examination)
    assert "no token sees the future" in capsys.readouterr().out


def test_a_fault_is_shown_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    bad = replace(
        at_most("three weights", 3, 0, "weights that are nan", "go back"), check="weights are numbers"
    )
    examination = Examination("model", [bad], 1.0)
    show(examination)
    out = capsys.readouterr().out
    assert "1 fault" in out and "weights that are nan\n  go back" in out and not as_json(examination)["ok"]


def test_what_is_missing_is_said(well: dict[str, Patient]) -> None:
    def lacks(_: Patient) -> None:
        raise NotChecked("no text")

    (lacking,) = findings_of("a check", lacks, well["teacher"])  # type: ignore[arg-type]
    assert (lacking.verdict, lacking.meaning, lacking.check) == ("not checked", "no text", "a check")


@pytest.mark.parametrize("kind", [RuntimeError, OSError, TypeError, AttributeError, ZeroDivisionError])
def test_whatever_breaks_a_check_is_a_fault(well: dict[str, Patient], kind: type[Exception]) -> None:
    def breaks(_: Patient) -> None:
        raise kind("shapes differ\nmore")

    (broken,) = findings_of("a check", breaks, well["teacher"])  # type: ignore[arg-type]
    told = f"the check could not finish: {kind.__name__}: shapes differ"
    assert (broken.verdict, broken.meaning) == ("fault", told)


def test_a_person_who_interrupts_is_no_fault(well: dict[str, Patient]) -> None:
    def interrupted(_: Patient) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        findings_of("a check", interrupted, well["teacher"])  # type: ignore[arg-type]


def test_not_a_number_is_never_ok() -> None:
    assert at_most("", float("nan"), 1.0, "", "").verdict == "fault"


def test_a_recipe_is_examined_with_its_students(run: Path) -> None:
    examination = examine_recipe(resolve(load_recipe(run / "recipe.toml")), "recipe")
    assert {finding.model for finding in examination.findings} == {"teacher", "student"}
    assert not examination.faults and not examination.notes


def test_a_large_llama3_is_one_in_little() -> None:
    """No chunks where the large one has none."""
    sizes = {"hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "head_size": 128, "dense_size": 14336}
    large = LLAMA3.model_copy(
        update=sizes | {"vocab_size": 128_256, "context_length": 8192, "chunk_size": 8192}
    )
    small = in_little(large)
    assert llama3.fits(small) and count_parameters(small).total < WHOLE
    assert small.num_heads // small.num_kv_heads == 4 and small.vocab_size == large.vocab_size


@pytest.mark.parametrize(("layers", "experts", "every"), [(48, 16, 1), (48, 128, 2), (12, 0, 1)])
def test_a_large_model_is_examined_in_little(run: Path, layers: int, experts: int, every: int) -> None:
    changes = {"hidden_size": 5120, "num_heads": 40, "num_kv_heads": 8, "head_size": 128, "chunk_size": 8192}
    sizes = {"expert_size": 8192, "dense_size": 16384, "vocab_size": 202_048, "context_length": 262_144}
    shape = {"num_layers": layers, "num_experts": experts, "moe_every": every}
    large = SCOUT.model_copy(update=changes | sizes | shape)
    small = in_little(large)
    assert count_parameters(small).total < WHOLE
    for kept in ("num_experts", "experts_per_token", "moe_every", "nope_every", "vocab_size", "score_on"):
        assert getattr(small, kept) == getattr(large, kept)
    assert small.num_heads // small.num_kv_heads == 5 and small.context_length // small.chunk_size >= 4
    assert any(small.is_sparse(n) == (experts > 0) and not small.has_rope(n) for n in range(small.num_layers))
    resolved = replace(resolve(load_recipe(run / "recipe.toml")), model=large)
    assert all(
        count_parameters(model).total < WHOLE for model in models_of(little(resolved, with_tokenizer=True))
    )
