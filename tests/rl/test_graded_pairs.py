"""Two samples, the better one wins."""

from rl_cases import Scripted, prompts

from behemoth.rl.pairs import graded_pairs
from behemoth.rl.rewards import Rewards

REWARDS = Rewards({"correct": 1})


def test_the_better_one_wins_and_everything_else_is_counted():
    said = {
        "0": ["x", "y"],
        "1": ["yy", "xy"],
        "2": ["x", "xx"],  # both right
        "3": ["?", "x"],  # one cannot be scored
        "4": ["y", "y"],
        "5": ["xxx", "yx"],
    }
    asked = prompts(6, limit=8)
    pairs, counts = graded_pairs(Scripted(lambda p, i: said[p.item.id][i]), asked, 2, REWARDS, seed=0)
    assert [(p.id, p.chosen, p.rejected) for p in pairs] == [
        ("crosses/0", "x", "y"), ("crosses/1", "xy", "yy"), ("crosses/5", "xxx", "yx")
    ]  # fmt: skip
    assert counts == {"pair": 3, "tie": 2, "unscored": 1} and counts.total() == 6
    assert pairs[0].prompt == asked[0].messages and pairs[0].source == "graded crosses"


def test_of_more_answers_the_best_and_the_worst_are_taken():
    answers = ["xy", "xx", "yy", "xyy"]
    (pair,), _ = graded_pairs(Scripted(lambda p, i: answers[i]), prompts(1, limit=8), 4, REWARDS, seed=0)
    assert (pair.chosen, pair.rejected) == ("xx", "yy")


def test_an_answer_that_was_cut_off_is_never_the_preferred_one():
    cut = Scripted(lambda p, i: "xy"[i], finish="length")
    assert graded_pairs(cut, prompts(2, limit=8), 2, REWARDS, seed=0) == ([], {"unfinished": 2})
