"""Which passage follows: true endings are true, false ones fair."""

import itertools
import random
from collections import Counter

import pytest

from behemoth.base.errors import InputError
from behemoth.tasks.next_passage import next_passage

TEXT = "the sea was calm and a ship of old wood lay near some cold grey rocks without one single sail"
WORDS = TEXT.split()


def documents(count=60, chars=1500, seed=0):
    draw = random.Random(seed)
    made = []
    for number in range(count):
        words = []
        while len(" ".join(words)) < chars:
            words.append(draw.choice(WORDS) + str(draw.randrange(1000)) * (draw.random() < 0.3))
        made.append((f"d{number}", " ".join(words)))
    return made


def test_sixty_documents_give_three_hundred_items():
    texts = documents()
    task = next_passage(texts)
    assert len(task.items) >= 300
    assert Counter(item.cluster for item in task.items).keys() == {name for name, _ in texts}
    assert (task.ask, task.metric, task.chance) == ("choice", "accuracy", 0.25)


def test_the_true_passage_follows_and_the_false_ones_come_from_elsewhere():
    texts = dict(documents())
    for item in next_passage(list(texts.items())).items:
        own = texts[item.cluster]
        assert item.prompt + item.choices[item.gold] in own
        assert 60 <= len(item.prompt) <= 300
        for place, choice in enumerate(item.choices):
            assert (choice in own) == (place == item.gold)
            assert any(choice in text for text in texts.values())


def test_length_and_borders_tell_nothing():
    task = next_passage(documents())
    for item in task.items:
        assert len({len(choice) for choice in item.choices}) == 1
        assert 100 <= len(item.choices[0]) <= 130
        assert all(
            choice[0] == " " and not choice[1].isspace() and not choice[-1].isspace()
            for choice in item.choices
        )
        assert len(set(item.choices)) == 4
    golds = Counter(item.gold for item in task.items)
    assert all(golds[place] > len(task.items) / 6 for place in range(4))


def test_passages_of_a_document_do_not_overlap():
    texts = dict(documents(5, 5000))
    task = next_passage(list(texts.items()), per_document=8)
    assert len(task.items) == 40
    for name, text in texts.items():
        spans = []
        for item in (i for i in task.items if i.cluster == name):
            start = text.index(item.prompt + item.choices[item.gold]) + len(item.prompt)
            spans.append((start, start + len(item.choices[item.gold])))
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))


def test_seeds_and_limits():
    texts = documents(10)
    assert next_passage(texts).sha256 == next_passage(texts).sha256 != next_passage(texts, seed=1).sha256
    assert len(next_passage(texts, limit=12).items) == 12


def test_short_equal_or_wordless_documents_are_passed_over():
    texts = documents(8)
    odd = [("short", "a few words"), ("blob", "x" * 3000), ("copy", texts[0][1]), ("empty", "")]
    task = next_passage([*texts, *odd])
    assert {item.cluster for item in task.items} == {name for name, _ in [*texts, odd[2]]}
    twins = [i for i in task.items if i.cluster in ("copy", texts[0][0])]
    assert all(sum(choice in texts[0][1] for choice in item.choices) == 1 for item in twins)


@pytest.mark.parametrize("texts", [[], documents(3), [("a", "too short")] * 9])
def test_too_little_text(texts):
    with pytest.raises(InputError, match="no passages can be cut"):
        next_passage(texts)
