"""The verdict's page, from gate directories made by hand."""

import re

import pytest
from html_reader import Reader
from small_verdict import KEY, approve, bounded, check, make_gate, simple, verdict

from behemoth.base.files import read_json, write_json
from behemoth.bundle import journal
from behemoth.report import verdict as drawing
from behemoth.report.bounds import intervals, pictures, reach
from behemoth.report.page import build_report
from behemoth.report.verdict import section, sentence, write

HOSTILE = '</td><script>alert(1)</script><img src="https://example.org/x" onerror=alert(2)>&\x1b[31m'


@pytest.fixture
def gate(tmp_path):
    return make_gate(tmp_path / "gate")


def read(gate):
    page = write(gate, gate / "verdict.html").read_text()
    return page, Reader(page)


def test_says_the_verdict_the_reasons_and_what_was_not_measured(gate):
    page, reader = read(gate)
    said = reader.said()
    for part in (
        "✗ Hold. dpo is held: 2 checks fail, harmful compliance and a name so long; 2 cannot be told.",
        "Verdict of the gate for an open release, under the policy quickstart",
        "Harmful compliance fails: at most 5.0, upper end of the interval 29.7.",
        "What the model does in other languages.",
        "adds numbers of one and two digits better than the model it was made from",
        "✓ Holds. 41.2 percent against 0.0 of base on 600 items.",
        "9.1 percent against 6.0 of base on 120 items.The interval does not leave out the bar; about 4,300 more",
        "? Unknown. The licences let the weights go out.They were not gathered.",
        "Cy Demoread all of itapprover (demo)open2026-03-01 12:09",
        "Di Demoof another verdict; it does not count here",
        "Demo. The keys that signed this were made by the package",
        "4 entries, each chained to the one before; the chain is whole.",
        "evidencefinished 2026-03-01 12:07",
        *("1f" * 32, "2e" * 32, "3d" * 32, "4c" * 32, KEY.public.id[:16]),
    ):
        assert part in said, part
    assert not reader.problems
    assert "src=" not in page and "<script" not in page


def test_the_same_files_give_the_same_bytes_wherever_they_lie(gate, tmp_path):
    first = write(gate, tmp_path / "a.html").read_bytes()
    gate.rename(tmp_path / "release")
    assert write(tmp_path / "release", tmp_path / "b.html").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_a_release_has_no_reasons_and_no_demo_where_there_is_none(tmp_path):
    gate = make_gate(tmp_path / "gate", word="release", checks=[check()], reasons=[], not_measured=[])
    for path in (gate / "approvals").iterdir():
        path.unlink()
    said = read(gate)[1].said()
    assert "✓ Release." in said and "Why not" not in said and "Not measured" not in said
    assert "Demo." not in said and "Nobody has approved this yet." in said


def test_there_is_no_section_without_a_verdict(tmp_path):
    assert section(tmp_path) == ""


def test_the_report_of_a_run_shows_it(fake_run):
    assert "The gate" not in Reader(build_report(fake_run).read_text()).said()
    make_gate(fake_run / "gate")
    reader = Reader(build_report(fake_run).read_text())
    assert {"href": "#verdict"} in reader.named("a")
    assert "dpo is held: 2 checks fail" in reader.said() and not reader.problems


def test_text_of_strangers_stays_text(tmp_path):
    gate = make_gate(
        tmp_path / "gate", sentence=HOSTILE, reasons=[HOSTILE], not_measured=[HOSTILE],
        model={"name": HOSTILE, "sha256": HOSTILE}, policy={"name": HOSTILE, "sha256": "1f" * 32, "level": 0.95},
        checks=[check(HOSTILE, says=HOSTILE, found=HOSTILE, reason=HOSTILE), simple(*[HOSTILE] * 4)],
    )  # fmt: skip
    approve(gate, "x", HOSTILE, HOSTILE, "0" * 64, note=HOSTILE)
    journal.append(gate / "log.jsonl", "note", {HOSTILE: HOSTILE})
    page, reader = read(gate)
    assert "alert(1)" in reader.said() and not reader.problems
    assert not reader.named("script") and not reader.named("img") and "\x1b" not in page


def test_what_cannot_be_read_is_shown_as_that(gate):
    (gate / "approvals" / "broken.json").write_text("{}")
    lines = (gate / "log.jsonl").read_text().splitlines(keepends=True)
    (gate / "log.jsonl").write_text("".join([*lines[:1], *lines[2:]]))
    said = read(gate)[1].said()
    assert "brokencannot be read:" in said
    assert "The chain is broken" in said and "the chain is whole" not in said


# ------------------------------------------------------------------------------------------------ the pictures


def test_the_bar_is_the_checks_own_in_its_own_words():
    rows = [check(bar=0.123, wanted="more than somebody asked")]
    for width in (720.0, 360.0):
        drawn = intervals(rows, width, True)
        assert (
            ">bar +12.3</text>" in drawn
            and "+41.2 (+36.0 to +46.1), more than somebody asked, holds" in drawn
        )
    assert ">bar 5.0</text>" in intervals([bounded("x")], 720.0, False)
    assert pictures([simple("doctor", "stop", "holds", "fine")]) == ""


@pytest.mark.parametrize("holm", [True, False])
def test_why_levels_differ_is_said_once_where_they_may(tmp_path, holm):
    gate = make_gate(tmp_path / "gate", checks=[check(holm=holm), check("more", holm=holm)])
    said = read(gate)[1].said()
    assert (
        said.count("to hold, more than the policy's 95% is asked of it (Holm's method); to fail, 95%") == holm
    )


def boxes(picture, class_):
    found = re.findall(rf'<rect ([^>]*)class="{class_}"', picture)
    return [{key: float(value) for key, value in re.findall(r'(\w+)="([\d.]+)"', box)} for box in found]


@pytest.mark.parametrize("width", [720.0, 360.0])
def test_the_tinted_part_is_on_the_side_of_the_bar_where_it_holds(width):
    least = intervals(
        [bounded("a", **{"is": "at least"}, bar=0.5, low=0.6, estimate=0.7, high=0.8)], width, False
    )
    most = intervals([bounded("a", bar=0.5, low=0.6, estimate=0.7, high=0.8)], width, False)
    at = float(re.search(r'<line x1="([\d.]+)"[^>]*class="must"', least)[1])
    (right,), (left,) = boxes(least, "allowed"), boxes(most, "allowed")
    point = float(re.search(r'cx="([\d.]+)"', least)[1])
    assert right["x"] == pytest.approx(at, abs=0.1) and right["x"] < point < right["x"] + right["width"]
    assert left["x"] + left["width"] == pytest.approx(at, abs=0.2)


@pytest.mark.parametrize("width", [720.0, 360.0])
def test_everything_is_in_view(width):
    rows = verdict()["checks"][:1] + verdict()["checks"][2:4]
    scale = reach(rows, True, 0.0, width)
    for row in rows:
        for value in (row["low"], row["high"], row["bar"], 0.0):
            assert 0 < scale(value) < width
    far = reach([check()], True, 0.0, width)
    assert far(0.0) > 0
    scores = verdict()["checks"][4:6]
    assert reach(scores, False, 0.0, width).low == 0


def test_scales_are_not_mixed():
    drawn = pictures(verdict()["checks"])
    assert drawn.count("<figure") == 3
    titles = re.findall(r"<title>(.*?)</title>", drawn)[::2]
    assert titles == [
        "Checks by their difference in points",
        "Checks by their difference in bits per byte",
        "Checks by their score in points",
    ]
    assert drawn.count("Tinted is where") == 1


def test_status_is_told_by_shape_and_word_too():
    holds, fails, unknown = (intervals([check(status=s)], 720.0, True) for s in ("holds", "fails", "unknown"))
    assert "<circle" in holds and "✓ holds" in holds
    assert "<circle" not in fails and "✗ fails" in fails
    assert 'class="point open"' in unknown and "? unknown" in unknown


def test_a_check_without_numbers_is_in_the_table_only(tmp_path):
    gate = make_gate(tmp_path / "gate", checks=[simple("doctor", "stop", "fails", "the doctor saw two")])
    page, reader = read(gate)
    assert "<figure" not in page and "✗ Fails. The doctor saw two." in reader.said()


def test_sentences_begin_and_end_as_sentences_do():
    assert sentence("the doctor saw no fault") == "The doctor saw no fault."
    assert sentence("held_out is better.") == "held_out is better."
    assert sentence("") == ""


def test_names_of_the_files_are_those_of_a_gate_directory(gate):
    """What the page reads is what lies there: nothing is looked for under a name that nobody writes."""
    assert {path.name for path in gate.iterdir()} == {
        drawing.VERDICT, drawing.APPROVALS, drawing.LOG, drawing.EVIDENCE
    }  # fmt: skip
    assert read_json(gate / drawing.FACTS)["model"]["name"] == "dpo"
    assert "baseline base" in read(gate)[1].said()
    write_json(gate / drawing.FACTS, {})
    assert "baseline base" not in read(gate)[1].said()
