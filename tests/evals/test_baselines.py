import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.evals import baselines
from behemoth.evals.baselines import END, ByteNgram, TokenNgram

VOCABULARY = 23
BOS, EOS = 21, 22
TABLE = [bytes([97 + i]) * (1 + i % 3) for i in range(21)] + [b"", b""]  # ids 0 to 20 stand for 1 to 3 bytes


def documents(seed, count, length=60):
    """Seeded text with structure to find: the next token depends on the two before it, with some noise."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = [BOS, int(generator.integers(21))]
        for _ in range(length):
            rule = (3 * tokens[-1] + 5 * tokens[-2] + int(generator.integers(2))) % 21
            tokens.append(rule if generator.random() < 0.7 else int(generator.zipf(1.5)) % 21)
        found.append(np.array([*tokens, EOS], np.int32))
    return found


def slow_kneser_ney(training, order, num_symbols):
    """The definition, with dictionaries and recursion: p(symbol, history). Pieces come with their pads."""
    counts = Counter(
        tuple(piece[i - order + 1 : i + 1]) for piece, start in training for i in range(start, len(piece))
    )
    tables = {order: counts}
    for m in range(order - 1, 0, -1):
        tables[m] = Counter(gram[1:] for gram in tables[m + 1])
    followers = {m: defaultdict(Counter) for m in tables}
    discount = {}
    for m, table in tables.items():
        for gram, count in table.items():
            followers[m][gram[:-1]][gram[-1]] = count
        n = Counter(table.values())
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            raw = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
            discount[m] = [min(max(d, 0), most) for d, most in zip(raw, [0, 1, 2, 3], strict=True)]
        else:
            discount[m] = [0, 0.5, 1, 1.5]

    def probability(symbol, history, m=order):
        if m == 0:
            return 1 / num_symbols
        lower = probability(symbol, history[1:], m - 1)
        seen = followers[m].get(history)
        if not seen:
            return lower
        total = sum(seen.values())
        kept = max(seen[symbol] - discount[m][min(seen[symbol], 3)], 0)
        return (kept + sum(discount[m][min(c, 3)] for c in seen.values()) * lower) / total

    return probability


def padded(pieces, order, pad):
    return [([pad] * (order - 1) + [int(t) for t in piece], order) for piece in pieces]


def slow_nats(probability, piece, order, start):
    return -sum(
        math.log(probability(piece[i], tuple(piece[i - order + 1 : i]))) for i in range(start, len(piece))
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_token_ngram_is_the_definition(order):
    training, held_out = documents(0, 12), documents(1, 4)
    slow = slow_kneser_ney(padded(training, order, VOCABULARY), order, VOCABULARY)
    expected = [slow_nats(slow, piece, order, start) for piece, start in padded(held_out, order, VOCABULARY)]
    assert TokenNgram.fit(training, VOCABULARY, order).score(held_out) == pytest.approx(expected, rel=1e-9)


def test_byte_ngram_is_the_definition():
    def in_bytes(pieces):
        pad = END + 1
        return [([pad] * 2 + [*b"".join(TABLE[t] for t in piece)] + [END], 2) for piece in pieces]

    training, held_out = documents(0, 12), documents(1, 4)
    slow = slow_kneser_ney(in_bytes(training), 3, END + 1)
    expected = [slow_nats(slow, piece, 3, start) for piece, start in in_bytes(held_out)]
    assert ByteNgram.fit(training, TABLE, 3).score(held_out) == pytest.approx(expected, rel=1e-9)


def test_token_probabilities_sum_to_one_for_any_history():
    model = TokenNgram.fit(documents(0, 12), VOCABULARY, 3)
    generator = np.random.default_rng(2)
    for history in [*generator.integers(VOCABULARY, size=(20, 2)), [BOS, 4], [4, BOS]]:
        pairs = [np.array([*history, token]) for token in range(VOCABULARY)]
        text = baselines.token_text(pairs, 3, VOCABULARY)
        assert model.ngram.probabilities(text)[1::2].sum() == pytest.approx(1)  # the last target of each


def test_byte_probabilities_sum_to_one_for_any_history():
    model = ByteNgram.fit(documents(0, 12), TABLE, 5)
    generator = np.random.default_rng(3)
    for history in [*generator.integers(97, 118, size=(10, 4)), [0, 1, 2, 3]]:
        pairs = [np.array([*history, symbol]) for symbol in range(END + 1)]
        text = baselines.lay_out(pairs, [4] * len(pairs), 5, END + 1)
        assert model.ngram.probabilities(text).sum() == pytest.approx(1)


@pytest.mark.parametrize(("model", "table"), [(TokenNgram, VOCABULARY), (ByteNgram, TABLE)])
def test_longer_histories_help_when_the_text_has_them(model, table):
    training, held_out = documents(0, 300), documents(1, 30)
    nats = [model.fit(training, table, order).score(held_out).sum() for order in (1, 2, 3)]
    assert nats[0] > nats[1] > nats[2]


def test_more_text_helps_and_beats_guessing():
    held_out = documents(1, 30)
    little, much = (TokenNgram.fit(documents(0, n), VOCABULARY).score(held_out).sum() for n in (20, 400))
    uniform = sum(len(document) - 1 for document in held_out) * math.log(VOCABULARY)
    assert much < little < uniform


def test_a_second_epoch_changes_nothing():
    training, held_out = documents(0, 20), documents(1, 5)
    once, twice = (
        TokenNgram.fit(pieces, VOCABULARY).score(held_out) for pieces in (training, training + training)
    )
    assert np.array_equal(once, twice)


def test_pieces_do_not_see_each_other():
    """A document scores the same alone and in company."""
    model = ByteNgram.fit(documents(0, 20), TABLE)
    held_out = documents(1, 6)
    assert model.score(held_out) == pytest.approx([model.score([d])[0] for d in held_out])


def test_every_byte_is_a_target_once_though_rows_overlap_by_a_token():
    """A row ends with the token that the next one begins with; that token must not be counted twice."""
    whole = documents(0, 1)[0]
    rows = [whole[0:21], whole[20:41], whole[40:]]
    whole_text, row_text = (baselines.byte_text(pieces, TABLE, 1) for pieces in ([whole], rows))
    assert np.array_equal(whole_text.symbols[whole_text.targets], row_text.symbols[row_text.targets])
    assert len(baselines.token_text(rows, 3, VOCABULARY).targets) == len(whole) - 1


def test_token_bytes_leaves_specials_empty():
    class Letters:
        vocab_size = 3
        byte_lengths = np.array([1, 2, 0])

        def decode_bytes(self, ids):
            return [b"a", b"bc", b"<special>"][ids[0]]

    assert baselines.token_bytes(Letters()) == [b"a", b"bc", b""]


def test_xz_finds_repetition_within_and_across():
    generator = np.random.default_rng(0)
    words = [bytes(generator.integers(97, 123, 8).astype(np.uint8)) for _ in range(200)]
    texts = [b" ".join(words[i] for i in generator.integers(200, size=300)) for _ in range(6)]
    size = sum(len(text) for text in texts)
    alone = baselines.xz_per_document(texts).sum() / math.log(2) / size
    together = baselines.xz_together(texts)
    assert 8 > alone > together > 0
    assert baselines.xz_together(texts + texts) < 0.6 * together


@pytest.mark.parametrize("pieces", [[], [np.array([BOS])]])
def test_no_text_is_refused(pieces):
    with pytest.raises(InputError, match="needs some text"):
        TokenNgram.fit(pieces, VOCABULARY)


def test_an_order_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="lower the order"):
        TokenNgram.fit(documents(0, 1), 200_000, 4)


def test_what_was_never_seen_keeps_a_probability_however_lopsided_the_counts():
    """Where nearly everything occurs twice, the estimated discount of what occurs once would be zero."""
    twice = np.tile(np.arange(40), 2)
    model = TokenNgram.fit([np.concatenate([twice, [41], np.tile([42], 3), np.tile([43], 4)])], 64)
    assert np.isfinite(model.score([np.array([0, 63, 62, 61])])).all()
