import re
import subprocess
import sys

import pytest
from html_reader import Reader

from behemoth.report.compare import HIDDEN, beginning, compare_page, legible, long_text, write_compare
from behemoth.report.forest import fit, forest, plain, signed

HOSTILE = (
    '</pre><script>alert(1)</script><img src="https://example.org/x" onerror=alert(2)>&amp;\x00\x1b[31m\ud800'
)
TURNED = "\u202egnirts\u202c \u200b\u2066שלום مرحبا\u2069 Z\u0335\u0321\u0344a 中文 \u2028\U000e0041"
LONG = "The answer is 18. " * 4000


def side(score, half, items=400, errors=0):
    return {
        "score": score, "low": score - half, "high": score + half,
        "items": items, "scored": items, "unscored": 0, "errors": errors,
    }  # fmt: skip


def output(said, score, **more):
    facts = {
        "output": said,
        "read": "",
        "why": "",
        "error": "",
        "score": score,
        "logprob": None,
        "truncated": False,
    }
    return {**facts, **more}


def example(name, better, right, wrong, prompt="Question: 9 + 9?\nAnswer:", gap=1.0):
    sides = {better: output(right, 1.0), "ba"["ab".index(better)]: output(wrong, 0.0, read="7", why="not 18")}
    return {"item": name, "better": better, "prompt": prompt, "reference": "18", "gap": gap, **sides}


def task(name="arithmetic", verdict="better", difference=0.125, half=0.031, differing=(1, 1), **more):
    texts = [HOSTILE, TURNED, LONG, "", "x = 1\n" * 50]
    examples = [
        example(f"{name}-{which}-{i}", which, "18", texts[i % len(texts)])
        for which, count in zip("ab", differing, strict=True)
        for i in range(min(count, 100))
    ]
    return {
        "task": name, "metric": "exact_match", "ask": "generate", "sha256": "5a" * 32, "unit": "points",
        "chance": 0.25, "items": 400, "left_out": 0, "a": side(0.613, 0.044), "b": side(0.488, 0.046, errors=3),
        "difference": difference, "low": difference - half, "high": difference + half, "level": 0.975,
        "p_value": 0.0123, "verdict": verdict,
        "method": "Tango's score interval, Student's t with 399 degrees of freedom",
        "sentence": f"teacher is better than control by {100 * difference:.1f} points, 97.5% interval 9.4 to 15.6",
        "more_items": None,
        "agreement": {"both": 190, "a": differing[0], "b": differing[1], "neither": 400 - 190 - sum(differing)},
        "differing": {"a": differing[0], "b": differing[1], "equal": 400 - sum(differing)},
        "examples": examples, **more,
    }  # fmt: skip


def text_task():
    document = {
        "item": "d7", "better": "b", "prompt": "", "reference": "def f(x):\n    return x\n", "gap": -7781.0,
        "a": output("", 2.411), "b": output("", 2.105),
    }  # fmt: skip
    found = task("held out", "worse", -0.1234, 0.011, (0, 1), unit="bits per byte", ask="text", chance=None)
    del found["agreement"]
    found["sentence"] = "teacher is worse than control by 0.123 bits per byte, 95% interval 0.112 to 0.134"
    return {**found, "level": 0.95, "a": side(2.4, 0.05), "b": side(2.277, 0.05), "examples": [document]}


def marked_task():
    part = {
        key: task()[key] for key in ("a", "b", "difference", "low", "high", "level", "p_value", "verdict")
    }
    clean = {**part, "items": 371, "difference": 0.0987, "verdict": "cannot tell"}
    return task("marked", contamination={"clean": clean, "dirty": {"items": 1}})


def results(*tasks, a="teacher", b="control"):
    return {
        "a": {"name": a, "spec": "runs/quickstart:teacher", "sha256": "ab" * 32, "how": "in float32 on cpu"},
        "b": {"name": b, "spec": "http://localhost:1/v1#control", "sha256": "", "how": "through /completions"},
        "suite": "basics", "level": 0.95, "sentence": "teacher is better than control on 1 of 3 tasks.",
        "remarks": ["3 items of control ended in an error and counted as wrong."], "tasks": list(tasks), "counts": {},
        "looked_into": [a, b],
    }  # fmt: skip


@pytest.fixture(scope="module")
def page():
    return compare_page(results(task(differing=(7, 5)), text_task(), marked_task()))


def test_the_sentence_comes_first_and_every_part_is_there(page):
    said = Reader(page).said()
    order = [
        "teacher is better than control on 1 of 3 tasks.", "3 items of control ended in an error", "Verdicts",
        "teacher better →", "arithmetic: teacher is better than control by 12.5 points", "Scores", "Contamination",
        "Items", "Method", "All tasks are one family (Holm)",
    ]  # fmt: skip
    places = [said.rindex(part) if part in ("Verdicts",) else said.index(part) for part in order[:2]]
    assert places == sorted(places)
    for part in order:
        assert part in said, part


def test_numbers_on_the_page_are_the_results(page):
    said = Reader(page).said()
    for number in (
        "+12.5 (+9.4 to +15.6)", "61.3", "48.8", "56.9 to 65.7", "0.012", "97.5%", "95% to 97.5% intervals", "25.0",
        "−0.123 (−0.134 to −0.112)", "2.400", "2.277", "control needs 7,781 bits fewer", "2.411 bits per byte",
        "+9.9", "371", "too few items", "190", "7 only teacher right, 5 only control right",
        "Interval and test: Tango's score interval.",
    ):  # fmt: skip
        assert number in said, number


def test_markup_is_whole_and_asks_for_nothing_from_outside(page):
    reader = Reader(page)
    assert (reader.problems, reader.open) == ([], [])
    outside = {"script", "img", "link", "iframe", "object", "image", "use", "form", "base"}
    assert not outside & {tag for tag, _ in reader.elements}
    for _, attributes in reader.elements:
        assert not {"src", "onerror", "onload", "onclick", "xlink:href", "srcset", "style"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in page
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    pointed_at = {link["href"][1:] for link in reader.named("a")} | {
        label["for"] for label in reader.named("label")
    }
    assert pointed_at <= set(ids)
    pictures = len(reader.named("svg"))
    assert pictures == len(re.findall("<svg[^>]*><title>[^<]+</title><desc>[^<]+</desc>", page))
    assert all(heading.get("scope") for heading in reader.named("th"))


def test_what_a_model_wrote_is_shown_and_never_obeyed(page):
    assert "<script" not in page
    said = Reader(page).said()
    assert "</pre><script>alert(1)</script><img" in said
    assert "⟨U+0000⟩⟨U+001B⟩[31m⟨U+D800⟩" in said
    assert "⟨U+202E⟩gnirts⟨U+202C⟩" in said
    assert not HIDDEN.search(page)


def test_hostile_names_everywhere_stay_text(tmp_path):
    bad = f'"><script>x</script>{HOSTILE}{TURNED}'
    found = task(bad, metric=bad, sha256=bad, sentence=bad, method=bad, verdict="better")
    found["examples"][0] |= {"item": bad, "prompt": bad, "reference": bad}
    page = compare_page(
        {**results(found, a=bad, b=bad + "2"), "suite": bad, "sentence": bad, "remarks": [bad]}
    )
    assert "<script" not in page
    reader = Reader(page)
    assert (reader.problems, reader.open) == ([], [])
    assert not HIDDEN.search(page)
    written = write_compare(tmp_path / "a" / "compare.html", results(found, a=bad, b="b"))
    assert written.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_both_directions_can_be_chosen_without_a_script(page):
    reader = Reader(page)
    buttons = [button for button in reader.named("input") if button["name"] == "show-0"]
    assert [button["class"] for button in buttons] == ["show-all", "show-a", "show-b"]
    assert [("checked" in button) for button in buttons] == [True, False, False]
    assert ".show-a:checked ~ .better-b" in page
    kinds = [item["class"].split()[1] for item in reader.named("article")]
    assert kinds[:12].count("better-a") == 7
    assert kinds[:12].count("better-b") == 5
    assert kinds[:3] == ["better-a", "better-b", "better-a"]  # in turn: neither crowds the other out


def test_a_page_of_thousands_of_items_and_twenty_tasks_stays_small_and_says_what_is_left_out():
    tasks = [task(f"task {i}", differing=(3000, 2500)) for i in range(20)]
    for one in tasks[:5]:
        for item in one["examples"]:
            item["prompt"] = item["a"]["output"] = item["b"]["output"] = "\u202e\"'<&" * 400
    page = compare_page(results(*tasks))
    assert len(page.encode()) < 3_000_000
    reader = Reader(page)
    assert reader.problems == []
    shown = [int(n) for n in re.findall(r">(\d+) of the 5,500 items that differ are shown", page)]
    assert len(shown) == 20
    assert sum(shown) == len(reader.named("article")) > 0
    assert "Every verdict as a sentence" in page


def test_one_task_without_any_difference():
    same = task("boolq", "cannot tell", 0.0, 0.0, (0, 0), level=None, p_value=None)
    same["sentence"] = "cannot tell teacher and control apart"
    page = compare_page(results(same))
    reader = Reader(page)
    assert reader.problems == []
    assert "The two do not differ on any of 400 items." in reader.said()
    assert "Cannot tell teacher and control apart." in reader.said()
    assert "Compared on 1 task of" in reader.said()
    assert not reader.named("article")
    assert "Contamination" not in reader.said()


def test_a_task_of_which_nothing_could_be_scored_is_told_not_drawn():
    empty = task("broken", "cannot tell", differing=(0, 0))
    empty |= dict.fromkeys(("difference", "low", "high", "level", "p_value"))
    empty |= {"items": 0, "sentence": "cannot tell: 0 items of 400 could be scored for both"}
    empty["a"] = empty["b"] = {
        **side(0, 0),
        "score": None,
        "low": None,
        "high": None,
        "scored": 0,
        "unscored": 400,
    }
    reader = Reader(compare_page(results(empty)))
    assert reader.problems == []
    assert "not scored" in reader.said()
    assert "nan" not in reader.said()


def test_an_error_a_cut_prompt_and_a_continuation_are_told():
    found = task(differing=(2, 0))
    found["examples"][0]["b"] |= {"error": "HTTP 500", "truncated": True, "output": ""}
    found["examples"][1]["b"] |= {"output": "", "logprob": -12.34}
    said = Reader(compare_page(results(found))).said()
    assert "Error: HTTP 500" in said
    assert "Longer than the context: cut on the left" in said
    assert "Not the likeliest text: 12.3 nats" in said


@pytest.mark.parametrize("width", [720.0, 360.0])
def test_a_difference_is_drawn_where_its_numbers_are(width):
    rows = [task("one", difference=0.1, half=0.05), task("two", "worse", -0.2, 0.1)]
    markup = forest(rows, ("teacher", "control"), width)
    bars = re.findall(
        r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="bar ([\w-]+)"/>', markup
    )
    (zero,) = map(float, re.findall(r'<line x1="([\d.]+)"[^>]*class="zero"/>', markup))
    assert [class_ for *_, class_ in bars] == ["side-a", "side-b"]
    (a, b), (c, d) = ((float(left), float(right)) for left, right, _ in bars)
    unit = (b - a) / 0.1
    assert ((a - zero) / unit, (c - zero) / unit, (d - zero) / unit) == pytest.approx(
        (0.05, -0.3, -0.1), abs=0.002
    )
    places = [
        float(x) for name in ("x", "x1", "x2", "cx") for x in re.findall(f' {name}="(-?[0-9.]+)"', markup)
    ]
    assert all(-1 <= x <= width + 1 for x in places)


def test_long_texts_are_cut_at_a_line_and_nothing_is_lost_behind_the_fold():
    said = "".join(f"line {i}\n" for i in range(200))
    assert beginning(said) == "\n".join(f"line {i}" for i in range(12))
    for from_end in (False, True):
        markup = long_text(said, from_end)
        assert markup.count("<pre") == 2
        assert all(
            f"line {i}\n" in markup or f"line {i}<" in markup or f"line {i}…" in markup for i in range(200)
        )
    assert len(beginning("word " * 400)) <= 700
    assert len(beginning("x" * 2000)) == 700
    assert "characters left out]" in long_text("y" * 50_000)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(0.0421, "points", "+4.2"), (-0.0421, "points", "−4.2"), (-0.0001, "points", "0.0"), (None, "points", "–"),
     (0.1534, "bits per byte", "+0.153"), (float("nan"), "points", "–")],
)  # fmt: skip
def test_signs(value, unit, said):
    assert signed(value, unit) == said
    assert plain(value, unit) == said.lstrip("+").replace("−", "-").replace(
        "0.0", plain(value, unit), said == "0.0"
    )


def test_names_keep_both_ends():
    assert fit("blimp_anaphor_gender_agreement", 100, 6.6) == "blimp_a…reement"
    assert fit("short", 100, 6.6) == "short"


def test_legible_keeps_what_can_be_read():
    assert legible({"a": ["naïve 中文 שלום\n\t", 1, None]}) == {"a": ["naïve 中文 שלום\n\t", 1, None]}


def test_needs_neither_torch_nor_numpy():
    code = "import behemoth.report.compare, sys; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
