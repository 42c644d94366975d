"""Rewards by part, and advantages in groups."""

import threading

import pytest
from rl_cases import prompts, sample

from behemoth.base.errors import InputError
from behemoth.rl.advantages import advantages, has_signal
from behemoth.rl.rewards import Rewards
from behemoth.rl.rollouts import Prompt
from behemoth.tasks.task import Grade, Item, Task


def asked(grade, limit=8):
    item = Item("1", "?")
    return Prompt("1", Task("t", "generate", (item,), "exact_match", grade=grade), item, (), (1,), limit)


def test_a_reward_is_the_weighted_sum_of_its_parts():
    (prompt,) = prompts(1, limit=8)
    rewards = Rewards({"correct": 1, "readable": 0.25, "finished": 0.5, "length": -0.1})
    right, wrong, cut_off, empty = rewards(
        [(prompt, sample(text, finish=finish)) for text, finish in
         [("xx", "stop"), ("yy", "stop"), ("x" * 8, "length"), ("", "stop")]]
    )  # fmt: skip
    used = len(sample("xx").ids) / 8
    assert right.parts == {"correct": 1, "readable": 1, "finished": 1, "length": used}
    assert right.total == pytest.approx(1.75 - 0.1 * used)
    assert wrong.total == pytest.approx(right.total - 1 - 0.1 * (wrong.parts["length"] - used))
    assert cut_off.parts["finished"] == 0
    assert empty.parts["readable"] == 0 == empty.parts["correct"]


def test_parts_without_weight_are_told_all_the_same():
    (prompt,) = prompts(1)
    (reward,) = Rewards({"correct": 2})([(prompt, sample("x"))])
    assert reward.total == 2 and reward.parts.keys() == {"correct", "readable", "finished", "length"}


def test_what_cannot_be_scored_has_no_reward():
    def broken(item, output):
        return 1 / 0

    rewards = Rewards({"correct": 1})
    answers = [(prompts(1)[0], sample("?")), (asked(broken), sample("x"))]
    answers.append((asked(lambda item, output: Grade(7.0)), sample("x")))
    found = rewards(answers)
    assert [reward.total for reward in found] == [None] * 3
    assert "a question" in found[0].why and "ZeroDivisionError" in found[1].why and "gave 7.0" in found[2].why
    assert rewards([]) == []


def test_graders_run_side_by_side():
    both = threading.Barrier(2, timeout=5)

    def meets(item, output):
        both.wait()
        return Grade(1.0, answer="met")

    found = Rewards({"correct": 1}, threads=2)([(asked(meets), sample("x"))] * 2)
    assert [reward.total for reward in found] == [1, 1]


def test_unknown_parts_and_no_weights_are_refused():
    with pytest.raises(InputError, match=r"'corect'.*correct"):
        Rewards({"corect": 1})
    with pytest.raises(InputError, match="every reward would be 0"):
        Rewards({"correct": 0})


def test_advantages_sum_to_zero_and_are_not_divided_by_the_deviation():
    assert advantages([1, 0, 0, 0]) == [0.75, -0.25, -0.25, -0.25]
    assert advantages([10, 0, 0, 0]) == [7.5, -2.5, -2.5, -2.5]
    for group in ([0.1, 0.2, 0.7], [3.0, -1.0], [1e-3, 0.5, 0.25, 1 / 3]):
        assert sum(advantages(group)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -7.7])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_equal_rewards_have_no_advantage_at_all(reward, count):
    assert advantages([reward] * count) == [0.0] * count
    assert not has_signal([reward] * count)
    assert has_signal([reward] * count + [reward + 0.01])
