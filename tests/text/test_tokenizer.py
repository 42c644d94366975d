import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import DamagedError, InputError
from behemoth.text.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n\n\nclass Thing:\n    '''A thing, 1234 of them.'''\n" * 3,
    "Once upon a time there was a small house; it's said they'll be back. ÄÖÜ ß 漢字 🙂\r\n" * 3,
]
SMALL = Tokenizer.train(TEXTS, 384)

special_looking = st.lists(st.one_of(st.sampled_from(list(SMALL.special_tokens)), st.text(max_size=5))).map(
    "".join
)
white_space = st.text(alphabet=" \n\r\t\u2028a1.'é<|", max_size=60)
any_text = st.one_of(st.text(), special_looking, white_space)


@given(any_text)
@settings(deadline=None, max_examples=300)
def test_every_text_comes_back_and_never_holds_a_special_token(text):
    ids = SMALL.encode(text)
    assert SMALL.decode(ids) == text
    assert not set(ids) & set(SMALL.special_tokens.values())
    assert SMALL.byte_lengths[ids].sum() == len(text.encode())


@given(st.lists(any_text, max_size=4))
@settings(deadline=None, max_examples=200)
def test_a_batch_is_encoded_as_its_texts_are(texts):
    assert SMALL.encode_batch(texts) == [SMALL.encode(text) for text in texts]


@given(st.lists(st.integers(0, SMALL.vocab_size - 1), max_size=20))
def test_any_ids_decode(ids):
    assert SMALL.decode(ids) == SMALL.decode_bytes(ids).decode("utf-8", errors="replace")
    assert len(SMALL.decode_bytes(ids)) == SMALL.byte_lengths[ids].sum()


@pytest.mark.parametrize("encode", [SMALL.encode, lambda text: SMALL.encode_batch([text])])
def test_a_lone_surrogate_is_refused_by_name(encode):
    with pytest.raises(InputError, match=r"character 3 .* U\+D83D"):
        encode("abc\ud83d")


def test_training_text_is_refused_with_a_lone_surrogate():
    with pytest.raises(InputError, match=r"U\+DC00"):
        Tokenizer.train(["fine", "\udc00"], 320)


def test_a_tokenizer_of_llama3s_kind(save_llama3, tmp_path):
    """Its own expression, bos and ends; nothing added by its template; text that looks special stays text."""
    from transformers import AutoTokenizer

    save_llama3(tmp_path)
    ours, theirs = Tokenizer.from_huggingface(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the model's text, 1981 and 20261;\r\n\n  x\t", "Größe 数学 🙂 it'LL", "", " \n "):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == text and ours.encode_batch([text]) == [ids]
    assert len(ours.encode("198")) == 1 and len(ours.encode("1981")) == 2  # digits in threes
    looking = "<|begin_of_text|>plain<|eot_id|>"
    assert not set(ours.encode(looking)) & set(ours.special_tokens.values())
    named = ours.special_tokens
    assert (ours.bos_id, ours.eos_id, ours.eot_id) == (
        named["<|begin_of_text|>"],
        named["<|eot_id|>"],
        named["<|eot_id|>"],
    )
    assert ours.pad_id == named["<|finetune_right_pad_id|>"]
    assert set(ours.stop_ids) == {named[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")}
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.sha256, again.names) == (ours.sha256, ours.names)


def test_digits_stand_alone():
    assert [SMALL.decode([i]) for i in SMALL.encode("1234")] == ["1", "2", "3", "4"]


def test_training_twice_gives_the_same_bytes():
    assert Tokenizer.train(TEXTS, 384).definition == SMALL.definition


def test_a_small_text_gives_a_smaller_vocabulary_that_is_padded_and_named():
    tokenizer = Tokenizer.train(["ab ab ab"], 2000)
    assert tokenizer.vocab_size == 320
    assert len(tokenizer.special_tokens) == len(SPECIAL_TOKENS) + (320 - 256 - 2 - len(SPECIAL_TOKENS))
    assert [tokenizer.decode([i], keep_special=True) for i in tokenizer.stop_ids] == [
        "<|end_of_text|>",
        "<|eom|>",
        "<|eot|>",
    ]


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(InputError, match="need at least 320"):
        Tokenizer.train(TEXTS, 256)


def test_saved_and_loaded_is_the_same_and_transformers_agrees(tmp_path):
    from transformers import AutoTokenizer

    SMALL.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "Once <|eot|> upon\n\n 1234 <|begin_of_text|> 🙂"
    assert loaded.sha256 == SMALL.sha256
    assert loaded.encode(text) == SMALL.encode(text) == theirs(text)["input_ids"]
    assert theirs.decode(loaded.encode(text)) == text
    assert len(theirs) == loaded.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        loaded.bos_id,
        loaded.eos_id,
        loaded.pad_id,
    )


def test_names_in_a_foreign_configuration_are_used(tmp_path):
    foreign = SMALL.definition.replace("<|begin_of_text|>", "[START]").replace("<|end_of_text|>", "[END]")
    (tmp_path / "tokenizer.json").write_text(foreign)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "[START]"}, "eos_token": "[END]"})
    )
    tokenizer = Tokenizer.from_huggingface(tmp_path)
    assert tokenizer.special_tokens["[START]"] == tokenizer.bos_id
    assert tokenizer.special_tokens["[END]"] == tokenizer.eos_id
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="no bos_token"):
        Tokenizer.from_huggingface(tmp_path / "tokenizer.json")


def test_a_tokenizer_with_another_split_is_encoded_whole(tmp_path):
    definition = json.loads(SMALL.definition)
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"[\s\S]{7}"
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    text = "one\ntwo three\nreturn a + b\n"
    assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_definition_that_cuts_and_pads_is_kept_from_it(tmp_path):
    definition = json.loads(SMALL.definition)
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    definition["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    definition["padding"] |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "x"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode(TEXTS[1]) == SMALL.encode(TEXTS[1])
    assert tokenizer.encode_batch(TEXTS) == SMALL.encode_batch(TEXTS)


def test_what_is_no_byte_level_tokenizer_is_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="no such file"):
        Tokenizer.load(tmp_path)
    file.write_text(SMALL.definition[:-40])
    with pytest.raises(DamagedError):
        Tokenizer.load(tmp_path)
    file.write_text("{}")
    with pytest.raises(DamagedError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)
    file.write_text(
        SMALL.definition.replace("ByteLevel", "Metaspace").replace('"use_regex": false', '"x": 1')
    )
    with pytest.raises(InputError):
        Tokenizer.load(tmp_path)
