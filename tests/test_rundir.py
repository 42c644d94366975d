"""Where a model belongs: the run that a path lies in, if a recipe made one."""

from pathlib import Path

import pytest

from behemoth.rundir import run_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint of its teacher, and in it an imported model, which no recipe made."""
    run = tmp_path / "run"
    for directory in (run, run / "imported"):
        (directory / "pretrain" / "checkpoints" / "step-00000001" / "weights" / "teacher").mkdir(parents=True)
        (directory / "record.json").write_text("{}")
    (run / "recipe.toml").write_text("")
    return run


def weights(directory: Path) -> Path:
    return next(directory.glob("*/checkpoints/*/weights/teacher"))


def test_the_run_and_what_lies_in_it(run: Path) -> None:
    for place in (run, f"{run}:teacher", weights(run), f"{weights(run).parents[1]}:teacher"):
        assert run_of(place) == run, place


def test_what_lies_in_no_run_of_a_recipe(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an import, though it is kept in a run, nor an endpoint that is asked from within one."""
    monkeypatch.chdir(run)
    for place in (run.parent, run / "imported", weights(run / "imported"), f"{run / 'imported'}:teacher"):
        assert run_of(place) is None, place
    for elsewhere in ("http://127.0.0.1:80/v1#model", "hf:org/name", "absent"):
        assert run_of(elsewhere) is None, elsewhere


def test_a_run_that_is_begun_only_belongs_to_no_recipe_yet(run: Path) -> None:
    (run / "recipe.toml").unlink()
    assert run_of(run) is None


def test_where_we_stand_and_links(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(run)
    assert run_of(".") == run_of(".:teacher") == Path(".")
    (tmp_path / "link").symlink_to(weights(run))
    assert run_of(tmp_path / "link") == run.resolve()
