import numpy as np
import pytest

from behemoth.data import dedup
from behemoth.data.dedup import Duplicates, fingerprint, shingles, signatures


def find(tmp_path, texts, at_once=7):
    duplicates = Duplicates(tmp_path)
    for i in range(0, len(texts), at_once):
        duplicates.add(texts[i : i + at_once])
    return tuple(mask.tolist() for mask in duplicates.find())


def edited(text, share, seed=0):
    """Replace a share of the words, the first ones, by words that are nowhere else."""
    words = text.split()
    count = int(share * len(words))
    return " ".join([f"new{seed}x{i}" for i in range(count)] + words[count:])


def obvious_shingles(text):
    words = text.split() + [""] * 4
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(a, b):
    return len(a & b) / len(a | b)


def test_shingles_are_those_of_the_obvious_way(prose):
    texts = [prose(1, 40), "a", "a b", prose(1, 40), "a b a b a b a b a b", edited(prose(1, 40), 0.3)]
    texts = [dedup.normalised(text) for text in texts]
    hashes, ends = shingles([text.encode() for text in texts])
    parts = [set(part.tolist()) for part in np.split(hashes, ends[:-1])]
    slow = [obvious_shingles(text) for text in texts]
    assert [len(part) for part in parts] == [len(part) for part in slow]
    for i in range(len(texts)):
        for j in range(len(texts)):
            assert jaccard(parts[i], parts[j]) == jaccard(slow[i], slow[j])


def test_signatures_estimate_the_similarity(prose):
    base = dedup.normalised(prose(3, 800))
    for share in (0.05, 0.2, 0.5):
        other = edited(base, share)
        a, b = signatures([base, other])
        exact = jaccard(obvious_shingles(base), obvious_shingles(other))
        assert abs((a == b).mean() - exact) < 0.12


def test_a_signature_does_not_depend_on_its_neighbours(prose):
    alone = signatures([prose(5)])
    assert np.array_equal(signatures([prose(4), prose(5), "x"])[1:2], alone)


def test_exact_and_near_duplicates_are_found_and_the_first_is_kept(tmp_path, prose):
    texts = [prose(i) for i in range(20)]
    texts += [texts[3].upper().replace(" ", "  "), edited(texts[5], 0.05), texts[3], edited(texts[7], 0.6)]
    exact, near = find(tmp_path, texts)
    assert [i for i, found in enumerate(exact) if found] == [20, 22]
    assert [i for i, found in enumerate(near) if found] == [21]


def test_a_chain_of_small_changes_is_one_cluster(tmp_path, prose):
    texts = [prose(1, 400), prose(2, 400)]
    for i in range(6):
        texts.append(edited(texts[-1], 0.02 * (i + 1), seed=i))
    _, near = find(tmp_path, texts)
    assert near == [False, False] + [True] * 6


def test_the_first_of_a_cluster_stays_whatever_the_order_of_its_pairs():
    pairs = np.array([[0, 2], [1, 2], [3, 4]])
    for order in ([0, 1, 2], [2, 1, 0]):
        later = dedup._later_in_cluster(6, pairs[order])
        assert later.tolist() == [False, True, True, False, True, False]


def test_thousands_of_unlike_texts_lose_none(tmp_path, prose):
    texts = [prose(i, 40) for i in range(2000)]
    exact, near = find(tmp_path, texts, at_once=500)
    assert not any(exact)
    assert not any(near)


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_few_texts_are_no_trouble(tmp_path, texts):
    assert find(tmp_path, texts) == ([False] * len(texts), [False] * len(texts))


def test_equal_but_for_case_and_white_space():
    assert fingerprint("A  b\n\nC") == fingerprint("a b c")
    assert fingerprint("a b c") != fingerprint("a bc")
