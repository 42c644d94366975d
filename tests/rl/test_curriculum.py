"""Which prompts come: a pure function of (seed, step, state) that prefers what can be learnt."""

import json
from collections import Counter

import numpy as np
import pytest
from rl_cases import prompts

from behemoth.base.errors import InputError
from behemoth.rl.curriculum import RARELY, Curriculum, appeal, uniform


def ids(chosen):
    return [prompt.id for prompt in chosen]


def made(*counts, size=8, **how):
    names = ["sums", "code", "talk"]
    asked = [p for name, count in zip(names, counts, strict=False) for p in prompts(count, name=name)]
    return Curriculum(asked, size, **how)


def tell_all(curriculum, step, rate):
    """Ten answers to every prompt; `rate(number of the prompt)` of them right."""
    for group in curriculum.prompts.values():
        for number, prompt in enumerate(group):
            curriculum.tell(step, prompt, [float(i < 10 * rate(number)) for i in range(10)])


def test_a_draw_depends_on_seed_step_and_state_alone():
    a, b = made(30, 30, seed=5), made(30, 30, seed=5)
    b.draw(0), b.draw(17)
    assert ids(a.draw(3)) == ids(b.draw(3)) == ids(a.draw(3))
    assert ids(a.draw(3)) != ids(a.draw(4))
    assert ids(a.draw(3)) != ids(made(30, 30, seed=6).draw(3))
    before = ids(a.draw(9))
    tell_all(a, 8, lambda number: number % 3 / 2)
    assert ids(a.draw(9)) != before
    assert len(set(ids(a.draw(9)))) == 8


def test_its_state_goes_through_json_and_comes_back_exactly():
    a = made(20, 20)
    for step in range(6):
        for number, prompt in enumerate(a.draw(step)):
            a.tell(step, prompt, [1.0, number / 7, 0.0])
    b = made(20, 20)
    b.restore(json.loads(json.dumps(a.state())))
    assert b.state() == a.state()
    assert [ids(a.draw(step)) for step in range(6, 12)] == [ids(b.draw(step)) for step in range(6, 12)]
    assert len(a.state()) < 40  # what was never asked is not kept
    b.restore({})
    assert ids(b.draw(3)) == ids(made(20, 20).draw(3))
    with pytest.raises(InputError, match="knows 1 prompts that this run has not, as sums/20"):
        b.restore({"sums/20": [1, 2, 3]})


def test_medium_and_hard_prompts_are_preferred_and_none_is_forgotten():
    curriculum = made(40, size=4)
    tell_all(curriculum, 0, lambda number: (0.0, 0.3, 0.7, 1.0)[number % 4])
    drawn = Counter()
    for seed in range(250):
        each = made(40, size=4, seed=seed)
        each.restore(curriculum.state())
        drawn.update(int(id.split("/")[1]) % 4 for id in ids(each.draw(1)))
    never, hard, easy, always = (drawn[kind] / 1000 for kind in range(4))
    assert hard > 1.6 * easy and easy > 1.3 * never
    assert 0 < always < 0.05
    assert never > always


def test_appeal_is_greatest_at_a_third_and_never_nothing():
    rates = np.linspace(0, 1, 1001)
    assert rates[appeal(rates).argmax()] == pytest.approx(1 / 3, abs=1e-3)
    assert appeal(rates).max() == pytest.approx(1, abs=1e-5)
    assert appeal(rates)[0] == appeal(rates)[-1] == RARELY


def test_an_unseen_prompt_is_expected_to_be_like_its_capability():
    curriculum = made(10, 10)
    for prompt in curriculum.prompts["sums"][:5]:
        curriculum.tell(0, prompt, [1.0] * 9 + [0.0])
    expected = curriculum.expected("sums", 0)
    assert expected[5:] == pytest.approx(0.9, abs=0.01)
    assert curriculum.expected("code", 0) == pytest.approx(0.5)


def test_old_scores_are_forgotten_by_halves():
    curriculum = made(10, size=4, half_life=10)
    a, b = curriculum.prompts["sums"][:2]
    curriculum.tell(0, a, [0.0] * 64)
    curriculum.tell(0, b, [1.0] * 64)
    late = [curriculum.expected("sums", step)[0] for step in (0, 10, 60, 600)]
    assert late == sorted(late) and late[0] < 0.01 and late[-1] == pytest.approx(0.5)
    curriculum.tell(60, a, [1.0])  # one new answer weighs as much as 64 of six half-lives ago
    right, asked, last = curriculum.state()[a.id]
    assert (right, asked, last) == (1.0, 2.0, 60.0)


def test_capabilities_share_every_batch():
    for step in range(20):
        assert Counter(id.split("/")[0] for id in ids(made(30, 30).draw(step))) == {"sums": 4, "code": 4}
    uneven = made(30, 30, 30, size=8, weights={"sums": 2, "code": 1, "talk": 1})
    assert Counter(id.split("/")[0] for id in ids(uneven.draw(1))) == {"sums": 4, "code": 2, "talk": 2}
    thirds, count = made(30, 30, 30), Counter()
    for step in range(300):
        drawn = Counter(id.split("/")[0] for id in ids(thirds.draw(step)))
        assert sum(drawn.values()) == 8 and set(drawn.values()) == {2, 3}
        count += drawn
    assert all(abs(n - 800) < 30 for n in count.values())


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="sums has 3 prompts, and its share of a step is 4"):
        made(3, 30)
    with pytest.raises(InputError, match="give each of them one"):
        made(30, 30, weights={"sums": 1})
    with pytest.raises(InputError, match="60 prompts with 30 ids"):
        Curriculum(prompts(30) + prompts(30), 4)


def test_numbers_are_uniform_and_never_0_or_1():
    numbers = uniform(7, 20_000)
    assert numbers.min() > 0 and numbers.max() < 1
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx(2000, abs=200)
