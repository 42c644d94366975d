"""Text as it streams, and the conversation around it."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch

from behemoth.base.errors import InputError
from behemoth.inference.engine import Engine, Token
from behemoth.inference.talk import chat_loop, complete, pieces
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer

BOS, EOS, EOT, START, END = range(256, 261)
BYTES = SimpleNamespace(  # a tokenizer in which every byte is a token
    bos_id=BOS,
    stop_ids=(EOS, EOT),
    special_tokens={"<|eot|>": EOT, "<|header_start|>": START, "<|header_end|>": END},
    can_chat=True,
    encode=lambda text: list(text.encode()),
    decode_bytes=lambda ids: bytes(i for i in ids if i < 256),
)


class Script:
    """An engine that says what it is told to, and remembers what it was asked."""

    def __init__(self, *answers: Sequence[int], context: int = 1000):
        self.answers, self.context = list(answers), context
        self.prompts: list[list[int]] = []
        self.settings: list[dict] = []

    def stream(self, prompt: list[int], **settings: object) -> Iterator[Token]:
        if len(prompt) > self.context:
            raise InputError(f"the prompt has {len(prompt)} tokens and the context holds {self.context}")
        self.prompts.append(prompt)
        self.settings.append(settings)
        return iter([Token(i, 0.0, None) for i in self.answers[len(self.prompts) - 1]])


def talk(engine: Script, *lines: str, **options: object) -> str:
    said: list[str] = []
    chat_loop(engine, BYTES, iter([*lines, None]).__next__, said.append, **({"turns": 1000} | options))
    return "".join(said)


def text_of(prompt: list[int]) -> str:
    return bytes(i for i in prompt if i < 256).decode()


def test_pieces_are_whole_characters() -> None:
    text = "né 世界 🦣!"
    got = list(pieces(BYTES, [Token(byte, 0.0, None) for byte in text.encode()]))
    assert got == list(text)


def test_bytes_that_never_become_a_character_are_shown_as_such() -> None:
    cut = [Token(byte, 0.0, None) for byte in "ab🦣".encode()[:-1]]
    assert "".join(pieces(BYTES, cut)) == "ab\ufffd"
    assert "".join(pieces(BYTES, [Token(0xFF, 0.0, None), Token(ord("x"), 0.0, None)])) == "\ufffdx"


def test_complete_begins_with_bos_and_stops_where_the_tokenizer_says() -> None:
    engine = Script([*b"world", EOS])
    assert "".join(complete(engine, BYTES, "hello ", max_tokens=9, temperature=0.5, seed=3)) == "world"
    assert engine.prompts == [[BOS, *b"hello "]]
    assert engine.settings[0]["stop_ids"] == (EOS, EOT)
    assert (engine.settings[0]["max_tokens"], engine.settings[0]["temperature"]) == (9, 0.5)


def test_complete_with_a_real_model() -> None:
    sizes = {"hidden_size": 16, "num_layers": 4, "num_heads": 2, "num_kv_heads": 1, "head_size": 8}
    config = ModelConfig(
        vocab_size=320, dense_size=16, expert_size=16, chunk_size=8, context_length=40, **sizes
    )
    engine = Engine(Transformer(config).initialise(torch.Generator().manual_seed(0)))
    tokens = [token.id for token in engine.stream([BOS, *b"hello"], stop_ids=BYTES.stop_ids)]
    assert "".join(complete(engine, BYTES, "hello")) == BYTES.decode_bytes(tokens).decode(errors="replace")
    with pytest.raises(InputError, match="41 tokens and the context holds 40"):
        complete(engine, BYTES, "x" * 40)


def test_before_post_training_it_completes_and_says_so() -> None:
    engine = Script(list(b" time"), list(b" pi"))
    said = talk(engine, "once upon a", "apple", turns=0)
    assert "not been post-trained" in said
    assert said.endswith(" time\n pi\n")
    assert engine.prompts == [[BOS, *b"once upon a"], [BOS, *b"apple"]]


def test_after_post_training_it_converses() -> None:
    engine = Script([*b"hi!", EOT], [*b"good", EOT])
    said = talk(engine, "hello", "", "how are you?")
    assert "not been post-trained" not in said
    assert said.endswith("hi!\ngood\n")
    opening = [START, *b"assistant", END, *b"\n\n"]
    first = [BOS, START, *b"user", END, *b"\n\nhello", EOT, *opening]
    assert engine.prompts[0] == first
    assert engine.prompts[1] == [
        *first,
        *b"hi!",
        EOT,
        START,
        *b"user",
        END,
        *b"\n\nhow are you?",
        EOT,
        *opening,
    ]
    assert (
        engine.settings[0]["seed"] != engine.settings[1]["seed"]
    )  # the same question may get another answer


def test_commands() -> None:
    engine = Script(list(b"one"), list(b"two"))
    said = talk(engine, "/help", "first", "/reset", "second", "/quit", "third")
    assert said.count("/reset forgets") == 2
    assert len(engine.prompts) == 2
    assert "first" not in text_of(engine.prompts[1])


def test_the_oldest_turns_are_left_out_when_the_context_is_full() -> None:
    engine = Script(*[list(b"answer %d" % n) for n in range(5)], context=200)
    said = talk(engine, *[f"question {n} {'.' * 20}" for n in range(5)], max_tokens=30)
    assert "context of 200 tokens is full" in said
    assert all(len(prompt) <= 170 for prompt in engine.prompts)
    assert all(text_of(prompt).startswith("user\n\nquestion") for prompt in engine.prompts)
    last = text_of(engine.prompts[-1])
    assert "question 4" in last
    assert "answer 3" in last
    assert "question 0" not in last
    assert "answer 0" not in last


def test_a_line_too_long_for_the_context_is_refused_and_forgotten() -> None:
    engine = Script(list(b"fine"), context=100)
    said = talk(engine, "x" * 200, "short")
    assert "tokens and the context holds 100" in said
    assert said.endswith("fine\n")
    assert "xxx" not in text_of(engine.prompts[0])


def test_ctrl_c_ends_the_answer_not_the_conversation() -> None:
    engine = Script(list(b"par"), list(b"next"))
    stream = engine.stream

    def interrupted(prompt: list[int], **settings: object) -> Iterator[Token]:
        tokens = stream(prompt, **settings)
        if len(engine.prompts) == 2:
            return tokens
        return (token for part in (tokens, stop()) for token in part)

    def stop() -> Iterator[Token]:
        raise KeyboardInterrupt
        yield

    engine.stream = interrupted
    said = talk(engine, "go on", "again")
    assert said.endswith("par [stopped]\nnext\n")
    assert "par" in text_of(engine.prompts[1])


@pytest.mark.parametrize(("turns", "known"), [(1, "c"), (2, "bYc"), (3, "aXbYc")])
def test_a_model_is_given_as_many_questions_as_it_was_taught(turns: int, known: str) -> None:
    engine = Script(b"X", b"Y", b"Z")
    said = talk(engine, "a", "b", "c", turns=turns)
    heard = text_of(engine.prompts[-1]).replace("user", "").replace("assistant", "").replace("\n", "")
    assert heard == known
    assert ("every line stands alone" in said) == (turns == 1)
