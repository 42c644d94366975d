"""Text to ids and back: byte-level BPE, without a way for text to become a control token.

Bytes are merged in the order of their frequency (Sennrich et al. 2016; on bytes: Radford et al. 2019), inside
pieces cut by Qwen2's expression, which splits digits one by one and is known to transformers and to
llama.cpp. All 256 bytes are in the vocabulary, so every valid Unicode string comes back as it was.

Special tokens carry Llama 4's names. Text that looks like one is encoded as ordinary characters: the switch
for that is not stored in tokenizer.json, so it is set at every load here and written to tokenizer_config.json
for others. Vocabularies that are not byte-level (SentencePiece, WordPiece) are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import read_json, write_atomic, write_json
from behemoth.text.chat import chat_names, jinja
from behemoth.text.vocabulary import SMALLEST_VOCABULARY, SPECIAL_TOKENS, padded, too_small

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

BOS_NAMES = ("<|begin_of_text|>", "<s>", "<|startoftext|>")
EOS_NAMES = ("<|end_of_text|>", "</s>", "<|endoftext|>")
EOT_NAMES = ("<|eot|>", "<|eot_id|>", "<|im_end|>")
STOP_NAMES = ("<|eom|>", "<|eom_id|>", "<|end_of_text|>")
PAD_NAMES = ("<|finetune_right_pad|>", "<|finetune_right_pad_id|>")

# After a line's end, a character that is not white space always begins a new piece of QWEN2_SPLIT, so lines
# can be encoded one by one; the library is twice as fast on short strings.
LINE = re.compile(r"(?<=\n)(?=\S)")


@dataclass(frozen=True)
class ControlNames:
    """Which special token plays which part."""

    bos: str
    eos: str
    eot: str
    pad: str


class Tokenizer:
    """Ids of plain text, and of the few tokens that are not text.

    `vocab_size` counts every id a model must have a row for (a multiple of 64); `byte_lengths` is the number
    of bytes of text each id stands for (0 for special tokens and padding); `sha256` is of tokenizer.json.
    """

    def __init__(self, definition: str, names: ControlNames):
        self.definition, self.names = definition, names
        self.sha256 = hashlib.sha256(definition.encode()).hexdigest()
        self._bpe = tokenizers.Tokenizer.from_str(definition)
        self._bpe.encode_special_tokens = True
        self._bpe.no_truncation()  # a definition may ask for either, and text would be cut or filled in silence
        self._bpe.no_padding()
        added = self._bpe.get_added_tokens_decoder()
        plain = self._bpe.normalizer is None and all(token.special for token in added.values())
        self._by_line = plain and QWEN2_SPLIT in _split_patterns(definition)
        self.special_tokens = {token.content: i for i, token in sorted(added.items()) if token.special}
        self.bos_id, self.eos_id, self.eot_id, self.pad_id = (
            self.special_tokens[name] for name in (names.bos, names.eos, names.eot, names.pad)
        )
        others = (self.special_tokens[name] for name in STOP_NAMES if name in self.special_tokens)
        self.stop_ids = tuple(sorted({self.eos_id, self.eot_id, *others}))
        self.token_bytes = _token_bytes(self._bpe)
        self.vocab_size = len(self.token_bytes)
        self.byte_lengths = np.array([len(text) for text in self.token_bytes], dtype=np.int32)

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts`; `vocab_size` is rounded up to a multiple of 64, less when text runs out.

        The same texts give the same bytes. InputError when `vocab_size` cannot hold the bytes and specials.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise InputError(too_small(vocab_size))
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=padded(vocab_size) - len(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(map(_encodable, texts), trainer)
        size = bpe.get_vocab_size() + len(SPECIAL_TOKENS)
        reserved = [f"<|reserved_special_token_{i}|>" for i in range(padded(size) - size)]
        bpe.add_special_tokens([AddedToken(name, normalized=False) for name in (*SPECIAL_TOKENS, *reserved)])
        names = ControlNames(
            bos="<|begin_of_text|>", eos="<|end_of_text|>", eot="<|eot|>", pad="<|finetune_right_pad|>"
        )
        return Tokenizer(bpe.to_str(pretty=True), names)

    @staticmethod
    def load(directory: Path) -> Tokenizer:
        """Read a directory with tokenizer.json (and tokenizer_config.json): our own or a Hugging Face one."""
        return Tokenizer.from_huggingface(directory)

    @staticmethod
    def from_huggingface(path: Path) -> Tokenizer:
        """Read a byte-level `tokenizer.json`, or a directory with one.

        The beginning and end of a document are those that tokenizer_config.json or special_tokens_map.json
        name; else those known by name. InputError when there are none.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        read_json(file)  # a missing or broken file is named before the library sees it
        definition = file.read_text(encoding="utf-8")
        try:
            bpe = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise DamagedError(file, f"not a tokenizer definition ({error})") from None
        if '"ByteLevel"' not in definition or not isinstance(bpe.model, models.BPE):
            raise InputError(
                f"{file} is not a byte-level BPE, so text could be lost in it; use one made by this "
                "package, or that of a Llama 3, Llama 4 or similar model"
            )
        return Tokenizer(definition, _control_names(file, bpe))

    def save(self, directory: Path) -> None:
        """Write what transformers loads to the same ids: definition, configuration, chat template."""
        write_atomic(directory / "tokenizer.json", self.definition)
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": self.names.bos,
                "eos_token": self.names.eos,
                "pad_token": self.names.pad,
                "eot_token": self.names.eot,
                "clean_up_tokenization_spaces": False,
                "split_special_tokens": True,
            },
        )
        if names := chat_names(self.special_tokens):
            write_atomic(directory / "chat_template.jinja", jinja(names))

    @property
    def can_chat(self) -> bool:
        """Whether the vocabulary has the special tokens of the chat template, Llama 4's or Llama 3's."""
        return chat_names(self.special_tokens) is not None

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: nothing is added at its ends and no part of it becomes a special token."""
        return self._bpe.encode(_encodable(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        for text in texts:
            _encodable(text)
        if not self._by_line:
            return [e.ids for e in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]
        lines = [LINE.split(text) for text in texts]
        encoded = iter(
            self._bpe.encode_batch_fast([x for group in lines for x in group], add_special_tokens=False)
        )
        return [[i for _ in group for i in next(encoded).ids] for group in lines]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of text the ids stand for; special tokens and padding stand for none."""
        return b"".join([self.token_bytes[i] for i in ids])

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD.

        `keep_special` writes special tokens by name.
        """
        if not keep_special:
            return self.decode_bytes(ids).decode("utf-8", errors="replace")
        names = {i: name.encode() for name, i in self.special_tokens.items()}
        pieces = [names.get(i, self.token_bytes[i]) for i in map(int, ids)]
        return b"".join(pieces).decode("utf-8", errors="replace")


def _encodable(text: str) -> str:
    """The text itself; InputError names the first lone surrogate, which no encoding of Unicode can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, "
            "which is not valid Unicode; remove it or decode the source with errors='replace'"
        ) from None
    return text


def _split_patterns(definition: str) -> list[str]:
    pre_tokenizer = json.loads(definition).get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return [step.get("pattern", {}).get("Regex", "") for step in steps if step.get("type") == "Split"]


def _byte_characters() -> dict[str, int]:
    """GPT-2's writing of bytes as characters: printable Latin-1 as itself, the rest from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _token_bytes(bpe: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of text of every id; empty for special tokens and for ids that pad the vocabulary."""
    vocabulary, added = bpe.get_vocab(), bpe.get_added_tokens_decoder()
    byte_of = _byte_characters()
    table = [b""] * padded(max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        if i not in added:
            table[i] = bytes(byte_of[character] for character in token)
        elif not added[i].special:
            table[i] = token.encode()
    return table


def _control_names(file: Path, bpe: tokenizers.Tokenizer) -> ControlNames:
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (file.parent / name).exists():
            config |= {k: v for k, v in read_json(file.parent / name).items() if v is not None}
    special = {token.content for token in bpe.get_added_tokens_decoder().values() if token.special}

    def find(part: str, known: Sequence[str]) -> str | None:
        value = config.get(f"{part}_token")
        given = value.get("content") if isinstance(value, dict) else value
        return next((name for name in (given, *known) if name in special), None)

    bos, eos = find("bos", BOS_NAMES), find("eos", EOS_NAMES)
    if bos is None or eos is None:
        missing = "bos_token" if bos is None else "eos_token"
        raise InputError(
            f"{file} has no {missing}: documents need a special token at their beginning and end; "
            f"name one in tokenizer_config.json (there are {', '.join(sorted(special)[:6]) or 'none'})"
        )
    return ControlNames(bos, eos, find("eot", EOT_NAMES) or eos, find("pad", PAD_NAMES) or eos)
