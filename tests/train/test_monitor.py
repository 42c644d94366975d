"""What the monitor writes, and that no disk can make it stop a run."""

import errno
import json
from types import SimpleNamespace

import pytest

from behemoth.base.files import read_jsonl
from behemoth.stats.intervals import Interval
from behemoth.train import monitor
from behemoth.train.loop import Step, Update
from behemoth.train.monitor import Monitor


class Board:
    """Stands in for TensorBoard."""

    def __init__(self):
        self.points, self.closed = [], False

    def add_scalar(self, name, value, step):
        self.points.append((name, step))

    def close(self):
        self.closed = True


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A monitor of a run of one member, and the board that it draws on."""
    board = Board()
    monkeypatch.setattr(monitor, "tensorboard", lambda *_: board)
    teacher = SimpleNamespace(name="teacher", joins=0, steps=10)
    return Monitor(tmp_path, [teacher], 10, 0, {"teacher": 1e6}, 1e9), board


def report(step, loss=2.0):
    return Step(step, 64, 0.5, {"teacher": Update({"loss": loss}, loss, 1.0, False, [[0.5, 0.5]])})


def test_numbers_that_are_not_finite_are_null(watched, tmp_path):
    watched[0].step(report(1, float("nan")))
    watched[0].held_out(1, "teacher", float("inf"))

    def strict(word):
        raise AssertionError(f"{word} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=strict)
    assert line["members"]["teacher"]["loss"] is line["members"]["teacher"]["grad_norm"] is None
    assert (
        json.loads((tmp_path / "heldout.jsonl").read_text(), parse_constant=strict)["bits_per_byte"] is None
    )


def test_the_score_of_a_task_says_what_it_is_a_score_of(watched, tmp_path):
    watched[0].task(4, "teacher", "stories", "text", Interval(1.5, 1.4, 1.6))
    assert list(read_jsonl(tmp_path / "tasks.jsonl")) == [
        {
            "step": 4,
            "member": "teacher",
            "task": "stories",
            "ask": "text",
            "score": 1.5,
            "low": 1.4,
            "high": 1.6,
        }
    ]


def test_a_disk_that_refuses_costs_lines_and_is_told_once(watched, tmp_path, monkeypatch, capfd):
    watching, written = watched[0], monitor.append_jsonl

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    watching.step(report(1))
    monkeypatch.setattr(monitor, "append_jsonl", full)
    for step in (2, 3):
        watching.step(report(step))
    monkeypatch.setattr(monitor, "append_jsonl", written)
    watching.step(report(4))
    watching.close()
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 4]
    said = capfd.readouterr().err
    assert said.count("No space left on device") == 1
    assert "2 records of" in said


def test_tensorboard_gets_every_curve_and_is_closed(watched):
    watching, board = watched
    watching.step(report(1))
    watching.held_out(1, "teacher", 2.5)
    watching.close()
    wanted = ["tokens_per_second", "teacher/loss", "teacher/grad_norm", "teacher/held_out_bits_per_byte"]
    assert board.points == [(name, 1) for name in wanted]
    assert board.closed


def test_tensorboard_starts_where_the_run_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", lambda _, purge_step: purge_step)
    assert monitor.tensorboard(tmp_path, 7) == 8


def test_records_after_the_start_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n' + b"\0" * 40)
    monitor.cut(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
