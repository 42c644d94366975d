import json
import re
import subprocess
import sys
from importlib.resources import files

import pytest
from html_reader import Reader

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, write_json
from behemoth.report import pictures
from behemoth.report.page import build_report, words
from behemoth.report.run import read_run
from behemoth.report.tasks import over_training


@pytest.fixture
def page(fake_run):
    return build_report(fake_run).read_text(encoding="utf-8")


def test_says_in_one_paragraph_what_was_made_and_how_good_it_is(page):
    said = Reader(page).said()
    assert "teacher is a sparse mixture-of-experts language model of 262K parameters" in said
    assert "4 layers, 8 experts, 1 of them chosen for each token" in said
    assert "It learned from 819K tokens" in said
    assert "together with 2 other models" in said
    assert (
        "On 84 documents that it had not seen it needs 2.012 bits per byte (95% interval 1.957 to 2.067)."
        in said
    )


def test_has_every_part_of_the_run(page):
    said = Reader(page).said()
    for part in (
        "Student is better than control by 0.153 bits per byte (95% interval 0.141 to 0.166).",
        "? Cannot tell control and token 3-gram apart",
        "These pairs are read together (Holm).",
        "token 3-gram, whole corpus",
        "Steps left out because a number was not finite: control 1.",
        "31% of the machine's measured matmul peak",
        "accuracy norm, guessing gives 25",
        "298 of 300",
        "next_passage during training, on a few of its items",
        "1.981 to 2.107",
        "6 items",
        "what of an item stood in the training text",
        "compare-student-control",
        "teacher: 2 checks, no fault, 4 s",
        "not checked",
        "Load of the experts of teacher",
        "The same for student",
        "teacher, layer 0",
        "the name is not in the cache",
        "dropped: 30 near duplicate, 8 not UTF-8",
        "small batches learn most per token on a CPU",
        "Time of each stage; 4 min 4 s in all.",
        "3f1c9e0",
    ):
        assert part in said, part
    assert "not run" not in said


def test_a_fault_is_told_in_the_open_with_what_to_do(fake_run):
    found = read_json(fake_run / "doctor.json")
    found["examined"][0]["findings"][0]["verdict"] = "fault"
    write_json(fake_run / "doctor.json", found)
    page = build_report(fake_run).read_text()
    assert "1 fault" in page and "what to do" in page and "✗ fault" in page


def test_markup_is_whole_and_asks_for_nothing_from_outside(page):
    reader = Reader(page)
    assert reader.problems == []
    assert reader.open == []
    assert not {"script", "img", "link", "iframe", "object", "image", "use"} & {
        tag for tag, _ in reader.elements
    }
    for _, attributes in reader.elements:
        assert not {"src", "onerror", "onload", "xlink:href", "srcset"} & set(attributes)
        assert re.fullmatch(r"#.*|compare-[\w-]+\.html", attributes.get("href") or "#")
    style = files("behemoth.report").joinpath("style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page
    assert len(page.encode()) < 1_500_000


def test_what_a_model_wrote_is_shown_and_never_obeyed(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)</script>" in Reader(page).said()  # as text


def test_hostile_names_everywhere_stay_text(fake_run):
    bad = '"><script>x</script>'
    for place in (
        "evals/results.json",
        "evals/experts.json",
        "record.json",
        "data/report.json",
        "stages.json",
    ):
        path = fake_run / place
        swapped = json.loads(
            path.read_text(), object_hook=lambda found: {poison(k, bad): v for k, v in found.items()}
        )
        path.write_text(json.dumps(swapped))
    results = json.loads((fake_run / "evals/results.json").read_text())
    for row in results["models"]:
        row["name"] = row["note"] = bad
    (fake_run / "evals/results.json").write_text(json.dumps(results))
    metrics = (fake_run / "pretrain/metrics.jsonl").read_text()
    (fake_run / "pretrain/metrics.jsonl").write_text(metrics.replace('"teacher"', json.dumps(bad)))
    recipe = (fake_run / "recipe.toml").read_text() + f'\n[{bad}]\n{bad} = "{bad}"  # derived: {bad}\n'
    (fake_run / "recipe.toml").write_text(recipe)
    (fake_run / "stages.json").write_text(json.dumps({bad: {"seconds": 3, "finished": bad}}))
    page = build_report(fake_run).read_text()
    assert "<script" not in page
    assert Reader(page).problems == []


def poison(key, bad):
    """A name that a person or a model chose: members, sources, hardware; not the format's own keys."""
    return bad if key in ("teacher", "student", "python", "cpu", "commit") else key


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('<a href="x">&\'', "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"),
        ("a\nb\tc", "a\nb\tc"),
        ("\x00\x1b[0m", "\u2400\u241b[0m"),
        ("\ud800", "?"),
        ("naïve 中文", "naïve 中文"),
    ],
)
def test_words_are_safe_to_show(text, shown):
    assert words(text) == shown


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("evals", "The evaluation: not run."),
        ("pretrain/metrics.jsonl", "Training: not run."),
        ("pretrain/samples.jsonl", "Sampling during training: not run."),
        ("data/report.json", "Preparing the data: not run."),
        ("stages.json", "Timing of the stages: not run."),
        ("record.json", "The record: not run."),
        ("recipe.toml", "The recipe: not run."),
    ],
)
def test_a_missing_part_is_said_to_be_missing(fake_run, part, said):
    moved = fake_run.parent / "elsewhere"
    (fake_run / part).rename(moved)
    reader = Reader(build_report(fake_run).read_text())
    assert said in reader.said()
    assert reader.problems == []


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    (tmp_path / "recipe.toml").write_text('name = "new"\n')
    said = Reader(build_report(tmp_path).read_text()).said()
    assert "not finished" in said
    assert said.count("not run.") >= 6


def test_one_step_without_held_out_text_experts_or_finite_loss(tmp_path):
    lines = [
        {
            "step": 1,
            "tokens": 64,
            "seconds": 0.1,
            "members": {"dense": {"loss": float("nan"), "skipped": True}},
        },
        {
            "step": 2,
            "tokens": 64,
            "seconds": 0.1,
            "members": {"dense": {"loss": 5.0, "skipped": False, "load": []}},
        },
    ]
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    held_out = {"step": 2, "member": "dense", "bits_per_byte": 3.0}
    (tmp_path / "pretrain" / "heldout.jsonl").write_text(json.dumps(held_out) + "\n")
    reader = Reader(build_report(tmp_path).read_text())
    assert "dense 1" in reader.said()
    assert "nan" not in reader.said()
    assert reader.problems == []


def test_pictures_speak_and_tables_have_headings(page):
    reader = Reader(page)
    assert all(svg["role"] == "img" for svg in reader.named("svg"))
    assert len(reader.named("svg")) == len(
        re.findall("<svg[^>]*><title>[^<]+</title><desc>[^<]+</desc>", page)
    )
    assert all(heading.get("scope") for heading in reader.named("th"))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {link["href"] for link in reader.named("a")}
    assert links & set(map("#{}".format, ids)) == links - {"compare-student-control.html"}


def test_colours_can_be_read_in_light_and_dark():
    """Text on the page at 4.5 to 1 or better (WCAG 2.2, 1.4.3), lines and dots at 3 to 1 (1.4.11)."""
    style = files("behemoth.report").joinpath("style.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in style.split("@media", 2)[:2]
    )
    for palette in (light, dark):
        for name in ("ink", "quiet", "series-0", "series-1", "series-2", "series-3"):
            assert contrast(palette[name], palette["page"]) >= 4.5, name
            assert contrast(palette[name], palette["tint"]) >= 4.5, name


def contrast(a, b):
    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_same_run_gives_the_same_page(fake_run):
    assert build_report(fake_run).read_bytes() == build_report(fake_run).read_bytes()


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        build_report(tmp_path)


def test_needs_neither_torch_nor_matplotlib():
    code = "import behemoth.report.page, sys; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_says_how_much_of_a_document_was_scored(fake_run):
    path = fake_run / "evals" / "results.json"
    note = "scored on the first 4,096 tokens of each held-out document"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": note}))
    assert f"that no model was trained on, {note}." in build_report(fake_run).read_text()


def test_texts_during_training_are_drawn_in_bits_per_byte(fake_run, monkeypatch):
    """Not as 150 percent right."""
    path = fake_run / "pretrain" / "tasks.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [
        line | {"task": "stories", "ask": "text", "score": 1.5, "low": 1.4, "high": 1.6} for line in lines
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines + texts))
    drawn, draw = {}, pictures.curves

    def look(curves, width, **how):
        drawn[how["title"]] = (how["y_title"], curves[0].marks[0][1])
        return draw(curves, width, **how)

    monkeypatch.setattr(pictures, "curves", look)
    over_training(read_run(fake_run), ["next_passage", "stories"])
    assert drawn["stories during training"] == ("bits per byte", 1.5)
    assert drawn["next_passage during training"] == ("percent right", pytest.approx(29))


def test_numbers_that_were_not_finite_are_left_out_of_the_pictures(fake_run):
    with open(fake_run / "pretrain" / "heldout.jsonl", "a") as file:
        file.write('{"step": 399, "member": "teacher", "bits_per_byte": null}\n')
    assert "Held-out text during training" in build_report(fake_run).read_text()
