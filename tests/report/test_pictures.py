import re
import xml.etree.ElementTree as ElementTree

import pytest

from behemoth.report import pictures
from behemoth.report.pictures import Curve
from behemoth.report.svg import Scale, decimals_of, spread_labels, whole


def numbers_of(markup, attribute):
    return [float(value) for value in re.findall(f'{attribute}="(-?[0-9.]+)"', markup)]


@pytest.mark.parametrize(
    ("low", "high", "count"), [(0, 819_200, 5), (1.73, 2.9, 6), (-3, 4, 4), (0, 1e-4, 5)]
)
def test_ticks_are_round_few_and_inside(low, high, count):
    ticks = Scale(low, high, 0, 100).ticks(count)
    assert 2 <= len(ticks) <= count + 1
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert f"{step:.0e}"[0] in "125"


def test_scale_is_a_straight_line():
    scale = Scale(10, 20, 100, 0)
    assert [scale(10), scale(15), scale(20)] == [100, 50, 0]
    assert Scale(3, 3, 0, 10)(3) == 0  # one value only: no division by nothing


def test_round_numbers_are_written_short():
    assert [whole(count) for count in ("10.0K", "1.05M", "200", "2.0B")] == ["10K", "1.05M", "200", "2B"]


@pytest.mark.parametrize(
    ("ticks", "decimals"),
    [([0, 50, 100], 0), ([0.5, 0.6, 0.7], 1), ([2.02, 2.04], 2), ([0, 5e-4], 4), ([1], 1)],
)
def test_round_numbers_have_the_decimals_in_which_they_differ(ticks, decimals):
    assert decimals_of(ticks) == decimals


def test_a_curve_from_zero_shows_zero_and_what_lies_below():
    for low, ticks in ((3e-4, {"0"}), (-2e-4, {"0", "-0.0002"})):
        curve = Curve("drift", [(1, 4e-4), (2, low)])
        markup = pictures.curves(
            [curve], 360.0, "Drift", "nats", from_zero=True, decimals=None, x_title="steps"
        )
        assert {"0.0004"} | ticks <= set(re.findall('class="tick" text-anchor="end">([^<]+)</text>', markup))
        assert f"nats over steps: drift ends at {low:.4f}" in markup
        places = re.findall(r"[ML][\d.]+,([\d.]+)", re.search(r' d="([^"]+)"', markup)[1])
        assert float(places[0]) < float(places[1]) <= 260 - 48


def test_labels_keep_their_order_and_their_distance():
    places = spread_labels([50, 10, 52, 51], 15)
    assert places == [50, 10, 80, 65]


@pytest.mark.parametrize("width", [720.0, 360.0])
def test_every_picture_is_well_formed_and_stays_within_its_width(width):
    curve = Curve("teacher", [(i, 5 / (i + 1)) for i in range(900)], [(899, 0.1, 0.05, 0.2)])
    rows = [
        {"name": f"model {i}", "kind": "model", "bits_per_byte": 2 + i, "low": 1.9 + i, "high": 2.2 + i}
        for i in range(3)
    ]
    grid = pictures.load_grid([[0.1, 0.4, 0.25, 0.25]] * 50, 20)
    for markup in (
        pictures.curves([curve], width, "Loss", "nats per token"),
        pictures.intervals(rows, width, "bits per byte"),
        pictures.expert_load(grid, (1, 50), width, 0, "teacher"),
        pictures.stage_times({"data": 3.0, "pretrain": 200.0}, width),
    ):
        ElementTree.fromstring(markup)
        places = [x for name in ("x", "x1", "x2", "cx") for x in numbers_of(markup, name)]
        assert all(-1 <= x <= width + 1 for x in places)


def test_an_interval_is_drawn_where_its_numbers_are():
    rows = [
        {"name": "a", "kind": "model", "bits_per_byte": 2.0, "low": 1.5, "high": 2.5},
        {"name": "b", "kind": "reference", "bits_per_byte": 3.0, "low": None, "high": None},
    ]
    markup = pictures.intervals(rows, 720.0, "bits per byte")
    (bar,) = re.findall(
        r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="bar model"/>', markup
    )
    first, second = numbers_of(markup, "cx")
    left, right = map(float, bar)
    assert first == pytest.approx((left + right) / 2, abs=0.11)
    assert second - first == pytest.approx(right - left, abs=0.11)


def test_a_first_loss_that_towers_over_the_rest_does_not_flatten_them():
    assert pictures.top_of([7.6, 7.0, *(3 - i / 200 for i in range(200))]) < 3.1
    assert pictures.top_of([2.0, 2.1, 2.2]) == 2.2


def test_thinning_keeps_the_mean_and_the_length():
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = pictures.thin(points, 80)
    assert len(thinned) == 80
    assert sum(y for _, y in thinned) / 80 == pytest.approx(sum(y for _, y in points) / 1000, abs=0.05)
    assert pictures.thin(points[:5], 80) == points[:5]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (0.0, "less shade-5"),
        (0.5, "less shade-2"),
        (1.05, ""),
        (1.4, "more shade-2"),
        (2.0, "more shade-5"),
        (8.0, "more shade-5"),
    ],
)
def test_shades_say_how_far_from_an_even_share(times, expected):
    assert pictures.shade(times) == expected


def test_load_is_drawn_where_and_as_strong_as_it_was():
    """Expert 1 has everything in the first half of the time, expert 0 in the second."""
    grid = pictures.load_grid([[0.0, 1.0]] * 10 + [[1.0, 0.0]] * 10, 4)
    assert grid == [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    markup = pictures.expert_load(grid, (0, 20), 428.0, 0, "teacher")
    more, less = (re.search(f'd="([^"]+)" class="{word} shade-5"', markup)[1] for word in ("more", "less"))
    assert more == "M226.0,0h200.0v15H226.0zM26.0,16h200.0v15H26.0z"
    assert less == "M26.0,0h200.0v15H26.0zM226.0,16h200.0v15H226.0z"
