import json
import re
import shutil

import pytest
from html_reader import Reader
from posttrained import EVIL, add_stages

from behemoth.base.errors import DamagedError
from behemoth.base.files import read_json, write_json
from behemoth.report import assistant, pictures
from behemoth.report.page import build_report
from behemoth.report.run import EDGE, read_run


@pytest.fixture
def run(tmp_path):
    """A run of which only what came after pretraining is there."""
    (tmp_path / "recipe.toml").write_text('name = "small"\n')
    return add_stages(tmp_path)


def section(run):
    """The markup of the section, and its text."""
    page = build_report(run).read_text(encoding="utf-8")
    found = re.search('<section aria-labelledby="from-base-to-assistant">.*?</section>', page, re.DOTALL)
    return (found[0], Reader(found[0]).said()) if found else ("", "")


def rows(markup):
    """The cells of every row of a table, as text."""
    cells = (re.findall("<t[hd].*?</t[hd]>", row) for row in re.findall("<tr.*?</tr>", markup))
    return [[" ".join(re.sub("<[^>]*>|&ensp;", " ", cell).split()) for cell in row] for row in cells]


def test_the_table_tells_what_each_stage_changed(run):
    markup, said = section(run)
    assert "Base gets 1.2% of 500 problems of arithmetic right; after DPO it is 72.2%." in said
    assert rows(markup)[1:11] == [
        ["arithmetic"],
        ["base", "1.2 0.0 to 5.6", "–", ""],
        ["SFT", "43.8 39.4 to 48.2", "+42.6 +38.1 to +46.9", "● better"],
        ["RL", "71.6 67.2 to 76.0", "+27.8 +23.6 to +32.0", "● better"],
        ["DPO", "72.2 67.8 to 76.6", "+0.6 −1.8 to +3.0", "○ cannot tell"],
        ["held-out text, bits per byte"],
        ["base", "2.012", "–", ""],
        ["SFT", "2.049", "+1.8%", ""],
        ["RL", "2.061", "+0.6%", ""],
        ["DPO", "2.058", "−0.1%", ""],
    ]
    assert "RL → DPO +0.6 (−1.8 to +3.0), cannot tell." in said  # the forest, as it is heard


def test_the_section_tells_how_each_stage_went(run):
    markup, said = section(run)
    for part in (
        "11,486 conversations kept, 310 rejected: 212 empty answer, 95 longer than the context, 3 unknown role.",
        "940 pairs kept, 51 rejected: 51 a tie.",
        "The best step was 150, with 67.1% right; that one is kept. It went through all its 180 steps.",
        "sampling 61%, grading 1%, scoring 10%, training 29%; 6 min 56 s in all.",
        "The answer is 42.",
    ):
        assert part in said, part
    assert ["arithmetic", "5,246", "96"] in rows(markup)


def test_the_whole_page_stays_whole(fake_run):
    page = build_report(add_stages(fake_run)).read_text(encoding="utf-8")
    reader = Reader(page)
    assert reader.problems == [] and reader.open == []
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in reader.named("a") if link["href"][0] == "#"} <= set(ids)
    assert all(" " not in name for name in ids)
    assert all(f"url(#{clip['id']})" in page for clip in reader.named("clippath"))


def test_a_run_without_stages_has_no_section(fake_run):
    assert "From base to assistant" not in build_report(fake_run).read_text()


def test_what_was_said_to_a_grader_is_shown_and_never_obeyed(run):
    for name in ("metrics", "tasks", "samples", "rollouts"):
        path = run / "rl" / f"{name}.jsonl"
        if path.exists():
            path.write_text(path.read_text().replace('"functions"', json.dumps(f"f{EVIL}")))
    outcome = read_json(run / "rl" / "outcome.json") | {"stopped": EVIL}
    write_json(run / "rl" / "outcome.json", outcome)
    write_json(run / "sft" / "data.json", {"kept": 1, "rejected": {EVIL: 2}, "sources": {EVIL: {}}})
    markup, said = section(run)
    assert "<script" not in markup
    assert "onclick" not in {name for _, attributes in Reader(markup).elements for name in attributes}
    assert said.count("<script>alert(1)</script>") >= 10  # prompts, answers, names and reasons, as text
    assert Reader(markup).problems == []


def test_an_early_stop_says_why(run):
    outcome = {"best_step": 40, "best_score": 0.5, "stopped": "the reward fell to 0.1", "steps": 90}
    write_json(run / "rl" / "outcome.json", outcome)
    assert "It stopped early, after 90 steps: the reward fell to 0.1." in section(run)[1]


def test_curves_stand_over_steps_with_the_values_that_were_written(run, monkeypatch):
    drawn, draw = {}, pictures.curves

    def look(curves, width, title, unit, **how):
        drawn[title] = {curve.name: curve.points for curve in curves}
        assert how["x_title"] == "steps"
        return draw(curves, width, title, unit, **how)

    monkeypatch.setattr(pictures, "curves", look)
    assistant.assistant(read_run(run))
    lines = [json.loads(line) for line in (run / "rl" / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]["rollouts"]
    assert drawn["reward in rl"]["reward"][-1] == (180, pytest.approx(last["reward"]))
    assert drawn["answers in rl"]["no signal"][-1] == (180, last["groups_without_signal"] / 16)
    assert drawn["length in rl"]["length"][-1] == (180, last["tokens"] / last["samples"])
    assert drawn["drift in rl"]["rl"][-1] == (180, 0.0011)
    assert list(drawn["parts in rl"]) == ["correct", "readable", "finished", "length"]
    assert list(drawn["margin in dpo"]) == ["margin", "chosen", "rejected"]
    assert drawn["arithmetic in sft"]["sft"][0] == (0, 0)  # before the first step
    assert "kl in rl" not in drawn


def test_first_steps_stand_beside_last_ones(run):
    markup, _ = section(run)
    sides = re.findall(r'<p class="facts">Step (\d+)</p>', markup)
    assert sides == ["1", "179", "3", "177", "2", "180", "4", "178"]
    best, worst = markup.index("The answer is 46."), markup.index("The answer is 56.")  # 19 + 27 in step 2
    assert best < worst
    assert (
        markup[best - 400 : best].count("reward 1.1") == markup[worst - 400 : worst].count("reward 0.1") == 1
    )
    assert "length 0, advantage −0.5, 26 tokens, cut off" in markup


def test_the_groups_shown_are_those_whose_answers_differ_most(run):
    path = run / "rl" / "rollouts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | {"reward": 0.1} if line["step"] in (1, 3, 180) else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sides = re.findall(r'<p class="facts">Step (\d+)</p>', section(run)[0])
    assert sides == ["5", "179", "7", "177", "2", "178", "4", "176"]


def test_steps_written_twice_show_the_later_answers(run):
    path = run / "rl" / "rollouts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    again = [line | {"text": "written again"} for line in lines if 175 <= line["step"] <= 176]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *again]))
    stage = read_run(run).after["rl"]
    assert [line["step"] for line in stage.first] == sorted([*range(1, EDGE + 1)] * 2)
    kept = [line["step"] for line in stage.last if line["text"] != "written again"]
    assert kept == [171, 171, 172, 172, 173, 173, 174, 174]
    assert [line["step"] for line in stage.last[len(kept) :]] == [175, 175, 176, 176]


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("evals/assistant.json", "after DPO it is"),
        ("sft", "SFT: fine-tuning"),
        ("dpo", "DPO: preferences"),
        ("dpo/data.json", "940 pairs"),
        ("rl/metrics.jsonl", "Where the time of RL went"),
        ("rl/rollouts.jsonl", "first steps beside last ones"),
        ("rl/outcome.json", "The best step"),
        ("sft/tasks.jsonl", "arithmetic in sft"),
        ("dpo/metrics.jsonl", "pairs told apart"),
    ],
)
def test_what_is_not_there_is_not_shown(run, part, gone):
    whole = section(run)[1]
    assert gone in whole
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    markup, said = section(run)
    assert gone not in said and "not run" not in said
    assert Reader(markup).problems == []


def test_torn_lines_end_a_curve_and_a_damaged_file_is_named(run):
    with open(run / "rl" / "metrics.jsonl", "a") as file:
        file.write('{"step": 181, "tok')
    with open(run / "rl" / "rollouts.jsonl", "a") as file:
        file.write('{"step": 181, "te')
    assert "RL over its steps" in section(run)[1]
    (run / "rl" / "outcome.json").write_text('{"best_')
    with pytest.raises(DamagedError, match=r"outcome\.json"):
        build_report(run)


def test_numbers_that_were_not_measured_leave_a_dash(run):
    found = read_json(run / "evals" / "assistant.json")
    for model in found["models"]:
        model["bits_per_byte"] = None
    found["steps"][1] |= {"difference": None, "low": None, "high": None, "verdict": "cannot tell"}
    found["held_out"] = []
    write_json(run / "evals" / "assistant.json", found)
    path = run / "rl" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"entropy": ', '"entropy": null, "was": '))
    path.write_text(re.sub(r'"samples": \d+', '"samples": 0', path.read_text()))
    markup, said = section(run)
    assert "held-out text, bits per byte base" not in said
    assert ["RL", "71.6 67.2 to 76.0", "–", "○ cannot tell"] in rows(markup)
    assert "entropy in rl" not in markup and "length in rl" not in markup
    assert "None" not in said and "nan" not in said
