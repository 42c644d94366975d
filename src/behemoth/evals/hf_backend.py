"""Any causal language model that transformers knows, as a backend: for comparison, and to compare with.

Rows are padded on the right to be scored, where nothing real sees the padding, and on the left to be continued.
Chunked attention (Llama 4) is the exception: with padding on the left transformers puts the borders elsewhere and
writes something else, so there only prompts of one length are continued together.
Logits are asked for only from the first scored position of a batch on (`logits_to_keep`), and rows with the same
tokens to read, such as the choices A to D of one question, are read once. A text begins with what the model's
tokenizer puts there by itself, as in lm-evaluation-harness; where that is nothing, an empty prompt is the token of
beginning (or end) of text. Weights are read from safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from behemoth.base.errors import InputError
from behemoth.base.files import sha256
from behemoth.evals.local import Local, Row, Written, precision_of
from behemoth.inference.engine import batches
from behemoth.inference.sampling import token_logprobs
from behemoth.model.weights import weight_files

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
UNKNOWN_LENGTH = 2048
LOGITS_AT_ONCE = 2**26  # numbers: 256 MiB of fp32


def download(name: str) -> Path:
    """The files of hf:ORG/NAME, from the Hub or its cache on this machine."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # the library raises its own, requests', httpx's and OSError
        raise InputError(
            f"hf:{name}: the Hugging Face Hub did not give it ({type(error).__name__}: {first_line(error)}); check "
            "the name and the network, or download the model and name its directory"
        ) from None


def open_transformers(
    directory: Path,
    name: str = "",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    bos: bool | None = None,
) -> Local:
    """bos: whether every text begins with that token; as the tokenizer does by itself when None."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    hashes = {path.name: sha256(path) for path in [directory / "config.json", *weight_files(directory)]}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or "auto", trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # a directory of somebody else: anything may be wrong with it
        raise InputError(
            f"{directory}: transformers cannot open it as a causal language model "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    reader = Theirs(model.eval().to(device), tokenizer, bos)
    return Local(reader, name or directory.name, digest, "transformers", batch=128)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class Theirs:
    """A transformers model and its tokenizer: a `Reader`."""

    def __init__(self, model: Any, tokenizer: Any, bos: bool | None = None):
        self.model, self.tokenizer = model, tokenizer
        self.precision, self.device = precision_of(model.dtype), model.device.type
        self.context = longest(model.config.get_text_config(), tokenizer)
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self.ends = ends(model.generation_config.eos_token_id, tokenizer.eos_token_id)
        config = model.config.get_text_config()
        self.pads_left = "chunked_attention" not in (getattr(config, "layer_types", None) or ())
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        beginning = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if beginning is None:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer names no bos or eos token, and a text has to begin with one"
            )
        self.opening = habit(tokenizer) if bos is None else [beginning] * bos
        self.first = self.opening or [beginning]

    def encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode ({error.reason})") from None
        return self.tokenizer.encode(text, add_special_tokens=False)

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        by_input: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            by_input.setdefault((*row.prompt, *row.continuation[:-1]), []).append(place)
        found = [(0.0, True)] * len(rows)
        for batch in batches(by_input, len, max(1, min(4096, LOGITS_AT_ONCE // self.vocab_size))):
            start = min(len(rows[place].prompt) - 1 for ids in batch for place in by_input[ids])
            logits_BTV = self.logits(fill(batch, "right", 0)[0], start)
            for ids, logits_TV in zip(batch, logits_BTV, strict=True):
                for place in by_input[ids]:
                    found[place] = judge(logits_TV[: len(ids) - start], rows[place].continuation)
        return found

    def logits(self, tokens_BT: Tensor, start: int) -> Tensor:
        """From slot `start` on."""
        tokens_BT = tokens_BT.to(self.model.device)
        if self.keeps:
            keep = tokens_BT.shape[1] - start
            return self.model(tokens_BT, logits_to_keep=keep, use_cache=False).logits
        return self.model(tokens_BT, use_cache=False).logits[:, start:]

    def write(self, rows: Sequence[Row], stop: Sequence[str]) -> list[Written]:
        found = [Written("", 0, "length")] * len(rows)

        def alike(place: int) -> tuple[int, int]:
            return rows[place].limit, 0 if self.pads_left else len(rows[place].prompt)

        asked = sorted((place for place, row in enumerate(rows) if row.limit), key=alike)
        for (limit, _), group in groupby(asked, key=alike):
            for batch in batches(group, lambda place: len(rows[place].prompt) + rows[place].limit, 16_384):
                written = self.go_on([rows[place].prompt for place in batch], limit, stop)
                for place, ids in zip(batch, written, strict=True):
                    found[place] = self.read(ids, stop)
        return found

    def go_on(self, prompts: Sequence[Sequence[int]], limit: int, stop: Sequence[str]) -> list[list[int]]:
        """`limit` tokens after each prompt; after a row's end there is padding."""
        import transformers

        tokens_BT, real_BT = fill(prompts, "left", self.ends[0] if self.ends else 0)
        until = transformers.StoppingCriteriaList([Until(self.tokenizer, stop, tokens_BT.shape[1])])
        out_BT = self.model.generate(
            tokens_BT.to(self.model.device),
            attention_mask=real_BT.to(self.model.device),
            max_new_tokens=limit,
            max_length=None,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(self.ends) or None,
            pad_token_id=self.ends[0] if self.ends else 0,
            stopping_criteria=until,
        )
        return out_BT[:, tokens_BT.shape[1] :].tolist()

    def read(self, ids: list[int], stop: Sequence[str]) -> Written:
        end = next((n for n, id in enumerate(ids) if id in self.ends), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        said = any(string in text for string in stop)  # then what ends the row is padding
        tokens = len(ids) if end is None else end + (not said)
        return Written(text, tokens, "length" if end is None and not said else "stop")


class Until:
    """A stopping criterion of transformers: which rows have written one of the strings, in any tokens."""

    def __init__(self, tokenizer: Any, strings: Sequence[str], start: int):
        self.tokenizer, self.strings, self.start = tokenizer, strings, start
        self.window = (
            max((len(string.encode()) for string in strings), default=0) + 4
        )  # a token is a byte at least

    def __call__(self, tokens_BT: Tensor, scores: Any, **_: Any) -> Tensor:
        ends = tokens_BT[:, self.start :][:, -self.window :].tolist()
        said = [any(s in text for s in self.strings) for text in self.tokenizer.batch_decode(ends)]
        return torch.tensor(said, device=tokens_BT.device)


def judge(logits_TV: Tensor, continuation: list[int]) -> tuple[float, bool]:
    """The last logits of a row are those of the continuation."""
    logits_NV = logits_TV[-len(continuation) :].float()
    targets_N = torch.tensor(continuation, device=logits_NV.device)
    logprob = token_logprobs(logits_NV, targets_N).double().sum().item()
    return logprob, bool((logits_NV.argmax(-1) == targets_N).all())


def fill(rows: Sequence[Sequence[int]], side: str, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, T), and which slots are real, (B, T) int64."""
    longest = max(len(row) for row in rows)
    gaps = [[0] * (longest - len(row)) for row in rows]
    left = side == "left"
    real = [
        gap + [1] * len(row) if left else [1] * len(row) + gap for row, gap in zip(rows, gaps, strict=True)
    ]
    tokens = [
        [pad] * len(gap) + [*row] if left else [*row] + [pad] * len(gap)
        for row, gap in zip(rows, gaps, strict=True)
    ]
    return torch.tensor(tokens), torch.tensor(real)


def habit(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts in front of a text by itself."""
    with_them, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    return with_them[: with_them.index(plain[0])] if plain and plain[0] in with_them else []


def ends(*ids: int | list[int] | None) -> tuple[int, ...]:
    """The tokens that end an answer."""
    found = [id for some in ids if some is not None for id in (some if isinstance(some, list) else [some])]
    return tuple(dict.fromkeys(found))


def longest(config: Any, tokenizer: Any) -> int:
    """Most tokens that the model reads at once."""
    named = [getattr(config, key, None) for key in LENGTHS]
    known = [n for n in [*named, tokenizer.model_max_length] if isinstance(n, int) and 0 < n < 10**9]
    return min(known, default=UNKNOWN_LENGTH)
