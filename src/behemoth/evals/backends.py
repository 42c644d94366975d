"""What an evaluation asks of a model, whatever the model is: how likely is this text, and what follows that one.

One item that fails (a time-out, an answer that is no answer) is a value among the others, so that nothing done
beside it is lost. Here are the questions, and the choice of who answers them: a model on this machine (`local`),
run by our engine or by transformers (`hf_backend`), or one behind an address (`endpoint`). No torch until a model is
opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from behemoth.base.errors import InputError
from behemoth.base.files import read_json

if TYPE_CHECKING:
    import torch

HUB = "hf:"
CHAT = "chat"  # the route of a local model that is asked in the chat template
OURS = ("llama4_text", "llama4")  # model types that our engine runs
OURS_IF_MADE_HERE = "llama"  # ... and the one that it runs in a directory that this package wrote
MAY_BE = (
    "a MODEL is a run, RUN:MEMBER, a checkpoint, an exported directory, a Hugging Face directory of any causal "
    "language model, hf:ORG/NAME, or http(s)://HOST/v1#MODEL"
)
Kind = Literal["behemoth", "transformers", "endpoint"]


@dataclass(frozen=True)
class Likelihood:
    """log p(continuation | bos prompt): nats, summed over the continuation's tokens.

    greedy: each of its tokens was the likeliest. truncated: the context did not hold all of the prompt.
    """

    logprob: float
    greedy: bool
    tokens: int
    truncated: bool = False
    attempts: int = 1  # how often an endpoint was asked until it answered


@dataclass(frozen=True)
class Generated:
    """What the model wrote, cut before the stop string or token that ended it ("stop"); "length": none did."""

    text: str
    tokens: int
    finish: Literal["stop", "length"]
    truncated: bool = False
    attempts: int = 1


@dataclass(frozen=True)
class Failed:
    """No answer, and why. It counts as a failure, never as nothing."""

    why: str
    attempts: int = 1


class Backend(Protocol):
    """A model as evaluations see it. Answers come in the order of the questions."""

    name: str
    sha256: str  # of config and weights; "" where nobody can know
    kind: Kind
    batch: int  # how many questions a call likes

    @property
    def precision(self) -> str:
        """Of the activations: "fp32", "bf16"; "" where nobody can know. The same weights score differently in each."""
        ...

    @property
    def device(self) -> str:
        """What kind computes: "cpu", "cuda"; "" where nobody can know."""
        ...

    @property
    def route(self) -> str:
        """Which page of a server writes, "completions" or "chat/completions"; "" on this machine."""
        ...

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | Failed]:
        """Of each (prompt, continuation)."""
        ...

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[Generated | Failed]:
        """The likeliest token each time, until a stop string, the model's end of text, or max_tokens."""
        ...

    def nats(self, texts: Sequence[str]) -> list[float | Failed]:
        """-log p(text | bos) of each, in windows of the context that do not overlap."""
        ...


def open_backend(
    spec: str | Path,
    precision: str | None = None,
    device: torch.device | str | None = None,
    chat: bool = False,
) -> Backend:
    """Who answers for `spec` (MAY_BE). InputError says what is wrong with it.

    precision: "fp32" or "bf16", of weights and activations alike; as the weights are stored when None. A server has
    its own. device: a GPU where there is one when None. chat: asked in the chat template, of models that our engine
    runs.
    """
    spec = str(spec)
    if spec.startswith(("http://", "https://")):
        from behemoth.evals.endpoint import Endpoint

        if chat:
            raise InputError(
                f"{spec}: --chat is for models on this machine; a server formats its chats itself"
            )
        return Endpoint(spec)
    from behemoth.evals.local import dtype_of, open_ours, where

    dtype = dtype_of(precision)
    device, directory = where(device), Path(spec)
    if spec.startswith(HUB) and not directory.exists():
        from behemoth.evals.hf_backend import download

        directory = download(spec.removeprefix(HUB))
    if (directory / "config.json").is_file() and not runs_here(directory):
        from behemoth.evals.hf_backend import open_transformers

        if chat:
            raise InputError(f"{spec}: --chat asks models that our engine runs; behemoth import it first")
        return open_transformers(directory, spec.rpartition("/")[2], dtype, device)
    if not directory.exists() and not Path(spec.rpartition(":")[0] or spec).exists():
        raise InputError(f"{spec}: no such file or directory; {MAY_BE}")
    return open_ours(directory, dtype, device, chat)


def runs_here(directory: Path) -> bool:
    """Whether our engine runs the model of a Hugging Face directory.

    A Llama 3 of somebody else is asked through transformers, with the special tokens that its own tokenizer puts;
    once imported, a run, its checkpoints and its exports are asked as every other model of this package.
    """
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        return False
    made_here = "behemoth" in config or (directory / "receipt.json").is_file()
    model_type = config.get("model_type")
    return model_type in OURS or (model_type == OURS_IF_MADE_HERE and made_here)
