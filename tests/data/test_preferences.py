"""Every layout of a pair on small rows written here, and on the real files where they are."""

import json

import pytest
from any_rows import ANY_ROW, table
from hypothesis import given, settings

from behemoth.base.errors import InputError
from behemoth.base.rows import Place
from behemoth.data.conversations import Found
from behemoth.data.preferences import read_pairs
from behemoth.text.chat import Message

USER = {"role": "user", "content": "1 + 2?"}
GOOD, BAD = {"role": "assistant", "content": "3"}, {"role": "assistant", "content": "4"}
HUMAN, BEST, WORST = (
    {"from": who, "value": text} for who, text in (("human", "1 + 2?"), ("gpt", "3"), ("gpt", "4"))
)
HH = "\n\nHuman: 1 + 2?\n\nAssistant:"
TEXTS = {"prompt": "1 + 2?", "chosen": "3", "rejected": "4"}
FIRST = {"instruction": "1 + 2?", "input": "", "response1": "3", "response2": "4"}
SECOND = {"prompt": "1 + 2?", "response 1": "4", "response 2": "3"}


@pytest.fixture
def read(tmp_path):
    def read(*rows, **more) -> Found:
        (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return read_pairs(Place(tmp_path / "some.jsonl"), **more)

    return read


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": f"{HH} 3", "rejected": f"{HH} 4"},
        TEXTS,
        {"question": "1 + 2?", "system": "", "chosen": "3", "rejected": "4"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "1 + 2?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "1 + 2?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"conversations": [HUMAN], "chosen": BEST, "rejected": WORST},
        {**FIRST, "annotator1": 1, "annotator2": 0, "annotator3": 1},
        {**FIRST, "response1": "4", "response2": "3", "annotator1": 2},
        {**FIRST, "label": 0},
        {**SECOND, "label": "1"},
    ],
)
def test_one_pair_in_every_layout(read, row):
    (pair,) = read(row).kept
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message("user", "1 + 2?"),), "3", "4")
    assert (pair.id, pair.source, pair.licence) == ("some:1", "some", "unknown")


def test_the_beginning_that_two_transcripts_share(read):
    before = "\n\nHuman: Hi.\n\nAssistant: Hello,\n\nyou." + HH
    (pair,) = read({"id": 5, "chosen": f"{before} 3", "rejected": f"{before} 4"}, licence="MIT").kept
    assert [m.content for m in pair.prompt] == ["Hi.", "Hello,\n\nyou.", "1 + 2?"]
    assert (pair.id, pair.licence) == ("5", "MIT")


REJECTED = {
    "no common prompt": {"chosen": f"{HH} 3", "rejected": "\n\nHuman: 1 + 3?\n\nAssistant: 4"},
    "roles out of order": {"chosen": f"{HH} 3\n\nAssistant: 4", "rejected": f"{HH} 4"},
    "no assistant turn": {"chosen": f"{HH} 3", "rejected": f"{HH} 4\n\nHuman: 5?"},
    "not a transcript": {"chosen": "3", "rejected": "4"},
    "chosen equals rejected": {**TEXTS, "rejected": " 3\n"},
    "empty answer": {**TEXTS, "rejected": " "},
    "not text": {**FIRST, "response1": True, "annotator1": 1},
    "a tie": {**FIRST, "annotator1": 0, "annotator2": 2, "annotator3": 0},
    "no majority": {**FIRST, "annotator1": 0, "annotator2": 2, "annotator3": 1},
    "unknown label": {**FIRST, "label": None},
    "unknown layout": {"prompt": "1 + 2?", "completion": "3"},
}


def test_every_reason_and_nothing_lost(read):
    found = read(TEXTS, *REJECTED.values())
    assert [row.why for row in found.rejected] == list(REJECTED)
    assert found.total == 1 + len(REJECTED)


def test_auto_js_tie_is_another_number_than_pandalms(read):
    found = read(TEXTS, {**SECOND, "label": 2}, {**FIRST, "annotator1": 2})
    assert found.reasons == {"a tie": 1} and found.kept[1].chosen == "4"


def test_a_layout_that_the_rows_do_not_have_is_refused(read):
    with pytest.raises(InputError, match=r"not a transcript 1.*has prompt, chosen, rejected"):
        read(TEXTS, layout="hh")


@given(ANY_ROW)
@settings(deadline=None, max_examples=150)
def test_no_row_whatever_it_holds_raises(tmp_path_factory, row):
    path = tmp_path_factory.getbasetemp() / "any_pair.jsonl"
    path.write_text(f"{json.dumps(TEXTS)}\n{json.dumps(row)}")
    assert read_pairs(Place(path)).total == 2


def test_the_preference_files_of_the_data_directory(data_directory):
    told, kept_share = table(data_directory / "preference", read_pairs)
    print("\n" + told)
    assert kept_share > 0.7  # people call more than a quarter of one file a tie
