import pytest

from behemoth.base.errors import InputError
from behemoth.base.units import counted, human_bytes, human_count, human_duration, parse_count, percent


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("400M", 400_000_000),
        ("2.5B", 2_500_000_000),
        ("820_000", 820_000),
        (7, 7),
        ("1,024", 1024),
        ("2e9", 2_000_000_000),
        (2e9, 2_000_000_000),
        (" 1.1m ", 1_100_000),
        ("40T", 40 * 10**12),
    ],
)
def test_parse_count(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "lots", "1.5", "-3", "4MB", True, "1.0000001K", "M"])
def test_parse_count_refuses(text):
    with pytest.raises(InputError, match="is not a count"):
        parse_count(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (2048, "2,048"),
        (9999, "9,999"),
        (16_384, "16.4K"),
        (999_999, "1.0M"),
        (4_000_000, "4.0M"),
        (1_250_432, "1.25M"),
        (107.77e9, "108B"),
        (1.9917e12, "1.99T"),
        (9.996e6, "10.0M"),
        (5e15, "5000T"),
    ],
)
def test_human_count(number, text):
    assert human_count(number) == text


@pytest.mark.parametrize(("number", "text"), [(12, "12 B"), (1500, "1.5 kB"), (1.2e9, "1.2 GB")])
def test_human_bytes(number, text):
    assert human_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (42.4, "42 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (9000, "2 h 30 min"),
        (3599.6, "1 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_human_duration(seconds, text):
    assert human_duration(seconds) == text


def test_numbers_of_things_and_shares():
    assert [counted(n, "item") for n in (0, 1, 1200)] == ["0 items", "1 item", "1,200 items"]
    assert [percent(share) for share in (0.95, 0.9975, 0.05)] == ["95%", "99.75%", "5%"]
