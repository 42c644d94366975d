import json

from behemoth.report.run import read_run


def test_steps_written_twice_count_once(fake_run):
    path = fake_run / "pretrain" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    again = json.loads(lines[-1])
    again["members"]["teacher"]["loss"] = 1.25
    path.write_text("\n".join([*lines, json.dumps(again)]) + '\n{"step": 401, "tok')  # and a torn last line
    run = read_run(fake_run)
    assert len(run.metrics) == 400
    assert run.series("teacher", "loss")[-1] == (400 * 2048, 1.25)


def test_series_stand_at_the_tokens_read_so_far(fake_run):
    run = read_run(fake_run)
    assert run.series("teacher", "loss")[0][0] == 2048
    assert run.series("student", "loss")[0][0] == 201 * 2048
    assert run.member_names() == ["teacher", "student", "control"]


def test_sizes_come_from_the_newest_weights(fake_run):
    teacher = next(member for member in read_run(fake_run).members if member.name == "teacher")
    embedding, experts = 2048 * 64, 8 * 4 * 64 * 64
    assert teacher.parameters == embedding + experts
    assert teacher.active == embedding + experts // 8
    older = fake_run / "pretrain" / "checkpoints" / "step-00000400"
    (older / "weights" / "control").rename(fake_run / "control")
    newer = older.with_name("step-00000800") / "weights"
    newer.mkdir(parents=True)
    (fake_run / "control").rename(newer / "control")
    assert [member.name for member in read_run(fake_run).members] == ["control"]


def test_exported_models_are_described_when_no_checkpoint_was_kept(fake_run):
    (fake_run / "export").mkdir()
    weights = fake_run / "pretrain" / "checkpoints" / "step-00000400" / "weights"
    (weights / "teacher").rename(fake_run / "export" / "teacher")
    (fake_run / "pretrain" / "checkpoints").rename(fake_run / "gone")
    assert [member.name for member in read_run(fake_run).members] == ["teacher"]
