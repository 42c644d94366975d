import re
import xml.etree.ElementTree as ElementTree

import pytest

from behemoth.report.experts import Bar, columns, glance, kinds, losses, two_lines

SOURCES = ("all", "python", "a source of prose")


def worth(layers, experts, sources=SOURCES):
    def of(layer, expert, source):
        added = round(0.01 * (layer + 1) * expert - 0.005, 4) * (1 + SOURCES.index(source))
        verdict = "better" if added > 0.004 else "worse" if added < -0.004 else "cannot tell"
        facts = {"level": 0.99, "documents": 60, "tokens": 7436}
        return {"added": added, "low": added - 0.004, "high": added + 0.004, "verdict": verdict, **facts}

    return [
        {
            "layer": 2 * layer,
            "experts": [
                {"expert": e, "without": {source: of(layer, e, source) for source in sources}}
                for e in range(experts)
            ],
        }
        for layer in range(layers)
    ]


def drawn(markup):
    return [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", markup, re.DOTALL)]


def test_every_expert_is_shown_with_its_number_and_all_is_well_formed():
    markup = losses("teacher", worth(2, 4))
    assert len(drawn(markup)) == 2 * (1 + 2)  # for a page and for a phone: all at a glance, and two layers
    for number in ("−0.005", "+0.005", "+0.055", "+0.165"):
        assert number in markup, number
    assert "Orange at full strength is 0.055" in markup
    assert "expert 3 of layer 2: 0.055 bits per byte more" in markup


def test_a_model_whose_experts_were_not_removed_has_no_picture():
    assert losses("teacher", [{"layer": 0, "experts": [{"expert": 0, "share": 1.0, "tokens": []}]}]) == ""
    assert kinds("teacher", [{"layer": 0, "experts": [{"expert": 0, "share": 1.0, "tokens": []}]}]) == ""


def test_strong_cells_are_the_experts_most_missed():
    rows = {0: worth(1, 6)[0]["experts"]}
    markup = glance(rows, 720.0, "teacher")
    assert re.findall('class="(more|less) shade-(.)"', markup) == [
        ("less", "1"), ("more", "1"), ("more", "2"), ("more", "3"), ("more", "4"), ("more", "5"),
    ]  # fmt: skip
    assert markup.count('class="sure"') == 6


def test_only_a_verdict_has_a_dot():
    """That one interval leaves zero out is no verdict among many; an older evaluation has none at all."""
    rows = {0: worth(1, 3)[0]["experts"]}
    assert glance(rows, 720.0, "teacher").count('class="sure"') == 3
    rows[0][0]["without"]["all"] |= {"verdict": "cannot tell"}
    rows[0][1]["without"]["all"] |= {"low": None, "high": None, "verdict": "cannot tell"}
    del rows[0][2]["without"]["all"]["verdict"]
    assert glance(rows, 720.0, "teacher").count('class="sure"') == 0


def test_what_text_was_scored_is_said():
    layers = worth(1, 3)
    assert "Scored: 7,436 tokens from inside 60 documents." in losses("teacher", layers)
    for expert in layers[0]["experts"]:
        del expert["without"]["all"]["tokens"]
    assert "Scored" not in losses("teacher", layers)


@pytest.mark.parametrize("width", [720.0, 360.0])
def test_bars_are_as_long_as_their_numbers_and_stay_on_the_page(width):
    rows = {
        str(e): {f"kind {k}": Bar(0.1 * (k + 1), f"{10 * (k + 1)}", usual=0.2) for k in range(7)}
        for e in range(8)
    }
    markup = columns(rows, width, "Kinds")
    ElementTree.fromstring(markup)
    lengths = [float(n) for n in re.findall(r'width="([\d.]+)" height="10"', markup)]
    assert len(lengths) == 56
    assert max(lengths) / min(lengths) == pytest.approx(7, rel=0.05)
    places = [float(x) for name in ("x", "x1", "x2") for x in re.findall(f' {name}="(-?[0-9.]+)"', markup)]
    assert all(-1 <= x <= width + 1 for x in places)
    height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', markup)[1])
    assert max(float(y) for y in re.findall(r' y="([0-9.]+)"', markup)) < height


def test_kinds_stand_beside_what_all_text_has():
    layer = {
        "layer": 3,
        "kinds": {"number": 0.25, "punctuation": 0.75, "other": 0.0},
        "experts": [{"expert": 0, "kinds": {"number": 0.6, "punctuation": 0.4, "other": 0.0}}],
    }
    markup = kinds("teacher <b>", [layer])
    assert "teacher &lt;b&gt;, layer 3" in markup
    assert "other" not in markup
    wide = drawn(markup)[0]
    said = [element.text for element in wide.iter() if element.tag.endswith("text")]
    assert {"number", "punctuation", "60", "40"} <= set(said)
    assert markup.count('class="usual"') == 4


def test_long_headings_break_at_a_space():
    assert two_lines("beginning of a word", 16) == ["beginning", "of a word"]
    assert two_lines("number", 16) == ["", "number"]
    assert two_lines("a" * 40, 9) == ["", "aaaa…aaaa"]
