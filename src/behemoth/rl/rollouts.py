"""Prompts in, answers out, each with what is needed to learn from it: who answers is a `Sampler`.

`EngineSampler` is the engine in this process: it reads the very parameters that are trained, so there are no weights to
send, and its log-probabilities are the trainer's to rounding. Every sample keeps its `version`, the number of optimizer
steps behind the weights that wrote it; here it is always the current one.

`EndpointSampler` is any OpenAI-compatible server, which knows nothing of our steps: whoever gives it new weights sets
`version`. Its text becomes tokens here, and its own log-probabilities count only where its tokens are exactly ours,
the stop token included; elsewhere there are none (`logprobs` is None) and the trainer puts its own in their place.

Log-probabilities are those of the model itself, at temperature 1. Sampled at another temperature, answers come from
another policy than the one that learns, and nothing corrects for it. Left out: stop strings (an answer ends with a stop
token), answers cut off and gone on with at the next step, tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from behemoth.base.errors import InputError
from behemoth.base.logs import say
from behemoth.base.mixing import mix_keys
from behemoth.inference.engine import Engine, Finish
from behemoth.tasks.task import Item, Task
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

SEEDS = 2**31  # a server's seed is a small integer


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question that can be asked and graded. `ids` is what the model reads; `limit` the most tokens of an answer."""

    id: str
    task: Task
    item: Item
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    limit: int


@dataclass(frozen=True, eq=False)
class Sample:
    """One answer. After "stop" the last of `ids` is the stop token, which `text` leaves out.

    logprobs: one for each of `ids`, under the sampler's model at temperature 1; None where nobody knows them.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    text: str
    finish: Finish
    version: int


class Sampler(Protocol):
    """Who answers."""

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int, version: int) -> list[list[Sample]]:
        """n answers to each prompt, in their order; fewer where some failed. version: of the trainer's weights."""
        ...


def prompts_of(task: Task, tokenizer: Tokenizer, limit: int, context: int) -> list[Prompt]:
    """The items of a task as chats that await an answer of at most `limit` tokens.

    Items that leave no room for it in the context are left out, and counted aloud. InputError: the task is not one
    that a model writes an answer to, or no item fits.
    """
    if task.ask != "generate":
        raise InputError(
            f"task {task.name} asks {task.ask!r}; a reward needs answers that are written and graded"
        )
    prompts = []
    for item in task.items:
        messages = (Message("user", item.prompt),)
        ids = tuple(encode_chat(tokenizer, messages, generation_prompt=True).ids)
        if len(ids) + limit <= context:
            prompts.append(Prompt(f"{task.name}/{item.id}", task, item, messages, ids, limit))
    if not prompts:
        raise InputError(
            f"task {task.name}: no item leaves room for {limit} tokens in a context of {context}; lower the limit"
        )
    if missing := len(task.items) - len(prompts):
        say(
            f"{task.name}: {missing:,} of {len(task.items):,} prompts leave no room for {limit} tokens; left out"
        )
    return prompts


class EngineSampler:
    """Answers of the model in this process. The engine reads each prompt of a group once."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, temperature: float = 1.0):
        if temperature <= 0:
            raise InputError(
                f"temperature = {temperature}: equal answers teach nothing; it must be above 0, best 1"
            )
        self.engine, self.tokenizer, self.temperature = engine, tokenizer, temperature

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int, version: int) -> list[list[Sample]]:
        asked = [prompt for prompt in prompts for _ in range(n)]
        if full := [prompt.id for prompt in asked if len(prompt.ids) >= self.engine.context]:
            raise InputError(f"prompt {full[0]} fills the context of {self.engine.context}; leave it out")
        done = self.engine.generate(
            [prompt.ids for prompt in asked],
            max_tokens=[prompt.limit for prompt in asked],
            temperature=self.temperature,
            seeds=[mix_keys(seed, row) for row in range(len(asked))],
            stop_ids=self.tokenizer.stop_ids,
        )
        samples = [
            Sample(tuple(d.tokens), tuple(d.logprobs), self.tokenizer.decode(d.tokens), d.finish, version)
            for d in done
        ]
        return [samples[at : at + n] for at in range(0, len(samples), n)]


# ------------------------------------------------------------------------------------------------- over a line


class Said(Protocol):
    """A server's answer to a chat. tokens, logprobs: as long as each other, empty where it tells none."""

    @property
    def text(self) -> str: ...
    @property
    def finish(self) -> Finish: ...
    @property
    def tokens(self) -> Sequence[bytes]: ...
    @property
    def logprobs(self) -> Sequence[float]: ...
    @property
    def why(self) -> str:
        """Why there is no answer; "" where there is one."""
        ...


class Chats(Protocol):
    """A server, as `evals.endpoint.Endpoint`."""

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_tokens: Sequence[int],
        seeds: Sequence[int],
        temperature: float,
    ) -> Sequence[Said]: ...


class EndpointSampler:
    """Answers of a server to the prompts' messages, in its own template. `version`: of the weights it serves."""

    def __init__(self, endpoint: Chats, tokenizer: Tokenizer, temperature: float = 1.0, version: int = 0):
        self.endpoint, self.tokenizer = endpoint, tokenizer
        self.temperature, self.version = temperature, version

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int, version: int) -> list[list[Sample]]:
        asked = [prompt for prompt in prompts for _ in range(n)]
        answers = self.endpoint.chat(
            [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in asked],
            max_tokens=[prompt.limit for prompt in asked],
            seeds=[mix_keys(seed, row) % SEEDS for row in range(len(asked))],
            temperature=self.temperature,
        )
        samples = [None if said.why else self.read(p, said) for p, said in zip(asked, answers, strict=True)]
        groups = [samples[at : at + n] for at in range(0, len(samples), n)]
        if why := [said.why for said in answers if said.why]:
            say(f"{len(why)} of {len(asked)} answers failed, the first: {why[0]}")
        return [[sample for sample in group if sample is not None] for group in groups]

    def read(self, prompt: Prompt, said: Said) -> Sample | None:
        """Cut at the limit, which is in our tokens. None for nothing at all, which has no token to learn."""
        ids = self.tokenizer.encode(said.text) + [self.tokenizer.eot_id] * (said.finish == "stop")
        if not ids:
            return None
        if len(ids) > prompt.limit:
            kept = tuple(ids[: prompt.limit])
            return Sample(kept, None, self.tokenizer.decode(kept), "length", self.version)
        return Sample(tuple(ids), self.logprobs(said, ids), said.text, said.finish, self.version)

    def logprobs(self, said: Said, ids: Sequence[int]) -> tuple[float, ...] | None:
        """The server's, if its tokens are these."""
        ours = [self.tokenizer.token_bytes[i] for i in ids]
        theirs = list(said.tokens)
        if said.finish == "stop" and theirs and theirs[-1] == self.tokenizer.names.eot.encode():
            theirs[-1] = b""  # some name the stop token, some leave its text empty
        return tuple(said.logprobs) if ours == theirs else None
