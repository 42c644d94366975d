"""When to stop, and what is best."""

import json

from behemoth.rl.collapse import SETTLED, Best, Watch


def facts(reward=0.5, length=20.0, finished=1.0, entropy=1.0, pass_rate=0.5):
    return {
        "reward": reward, "tokens": 10 * length, "samples": 10, "finished": finished, "entropy": entropy,
        "pass_rate": pass_rate,
    }  # fmt: skip


def run(watch, *stretches):
    """(steps, facts) after (steps, facts): the step at which it stopped, and why."""
    step = 0
    for steps, each in stretches:
        for _ in range(steps):
            step += 1
            if why := watch.update(each):
                return step, why
    return None


def test_learning_and_solving_are_no_collapse():
    grows = [(20, facts(reward=r / 10, pass_rate=r / 10, length=10 + 8 * r)) for r in range(1, 10)]
    assert run(Watch(), *grows, (100, facts(reward=0.95, pass_rate=0.95, entropy=1e-6, length=90))) is None


def test_it_stops_when_the_reward_has_fallen_and_stays_down():
    step, why = run(Watch(patience=15), (40, facts(0.8)), (60, facts(0.2)))
    assert "the reward fell to" in why and "from its best of 0.8, for 15 steps" in why
    assert 40 + 15 < step < 40 + 15 + 15
    assert run(Watch(patience=15), (40, facts(0.8)), (12, facts(0.2)), (100, facts(0.8))) is None
    assert run(Watch(fall=0.9), (40, facts(0.8)), (60, facts(0.2))) is None
    again = [(12, facts(0.2)), (40, facts(0.8))] * 2  # each dip is shorter than the patience
    assert run(Watch(fall=0.25, patience=20), (40, facts(0.8)), *again) is None


def test_a_fall_from_nothing_or_in_the_first_steps_is_noise():
    assert run(Watch(), (40, facts(-0.01)), (60, facts(-0.03))) is None
    assert run(Watch(), (1, facts(1.0)), (SETTLED, facts(0.1)), (100, facts(0.1))) is None


def test_it_stops_when_answers_run_away():
    step, why = run(Watch(patience=5), (20, facts(length=20)), (60, facts(length=200, finished=0.1)))
    assert "answers grew from 20 tokens to" in why and step < 40
    assert run(Watch(patience=5), (20, facts(length=20)), (60, facts(length=200, finished=0.9))) is None


def test_it_stops_when_answers_are_alike_and_wrong():
    _, why = run(Watch(patience=5), (20, facts()), (200, facts(entropy=1e-5, pass_rate=0.3)))
    assert "no longer differ" in why and "30% are right" in why
    assert run(Watch(patience=5), (20, facts()), (200, facts(entropy=None, pass_rate=0.3))) is None


def test_a_watch_goes_on_where_it_was():
    whole, half = Watch(patience=15), Watch(patience=15)
    run(half, (40, facts(0.8)), (10, facts(0.2)))
    rest = Watch(patience=15)
    rest.restore(json.loads(json.dumps(half.state())))
    step, why = run(whole, (40, facts(0.8)), (60, facts(0.2)))
    assert run(rest, (60, facts(0.2))) == (step - 50, why)


def test_best_is_the_last_of_equals():
    best = Best()
    assert json.loads(json.dumps(vars(best))) == {"step": 0, "score": None}
    scores = [(1, -1.0), (2, 0.5), (3, 0.5), (4, 0.2)]
    assert [best.update(step, score) for step, score in scores] == [True, True, True, False]
    again = Best(**json.loads(json.dumps(vars(best))))
    assert (again.step, again.score) == (3, 0.5) and not again.update(5, 0.4)
