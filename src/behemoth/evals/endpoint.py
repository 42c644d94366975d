"""A model behind an OpenAI-compatible server, asked over HTTP.

`POST /completions` writes; and where the server echoes a prompt with its log-probabilities (vLLM does, OpenAI's
own no longer) it also says how likely a text is. A server without /completions is asked through
/chat/completions, which can only write, and puts a template around the prompt; which of the two it is, is found out
before the first question, so that one evaluation never mixes them. `chat` samples, for reinforcement learning.

A server may be slow, drop the line, or answer with anything at all. Where it is busy (429) or broken (5xx), or the
line drops, it is asked again after a growing pause; what fails in the end is a `Failed` that says what was seen.
A refused key stops the evaluation, for it would be refused again. The key comes from OPENAI_API_KEY and stands in
no message; redirects are not followed, for the key would go along.

Left out: texts longer than the server's context (only the server could cut them), and a hash of the weights.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar
from urllib.parse import urlsplit

import httpx

from behemoth.base.errors import InputError
from behemoth.base.logs import say
from behemoth.evals.backends import Failed, Generated, Kind, Likelihood

TRIES = 4  # of one question, before it counts as failed
LONGEST_PAUSE = 30.0  # seconds between two tries
LARGEST_BODY = 64 * 2**20  # bytes of an answer; a long prompt with its log-probabilities has a few million
MOST_STOPS = 4  # stop strings that every server takes; the others are looked for in what comes back
SHOWN = 200  # characters of an answer in a message
PROBE = ("The sky is", " blue")
COMPLETIONS, CHAT = "completions", "chat/completions"
ABSENT = (404, 405, 501)
BUSY = (429, 500, 502, 503, 504)
CUT_SHORT = (
    "content_filter",
    "abort",
    "error",
    "tool_calls",
    "function_call",
)  # ends that are no end of an answer

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Json = dict[str, Any]


class Unanswered(Exception):
    """No answer, and why. status: the HTTP status where there was one; 200 with garbage in it."""

    def __init__(self, why: str, status: int | None = None, attempts: int = 1):
        super().__init__(why)
        self.status, self.attempts = status, attempts


class Endpoint:
    """One model of one server. spec: http://host:port/v1#model; without #model, the first one that it serves.

    timeout: seconds that one answer may take. concurrency: questions under way at once. pause: seconds before the
    second try, doubled before each further one. InputError: nobody is there, or it serves no such model.
    """

    kind: Kind = "endpoint"
    sha256 = precision = device = ""

    def __init__(self, spec: str, *, timeout: float = 120.0, concurrency: int = 8, pause: float = 0.5):
        self.url, model = address(spec)
        self.timeout, self.concurrency, self.pause = timeout, concurrency, pause
        self.batch = 4 * concurrency
        self._key = key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)
        self._route, self._echo_was_seen = "", False
        self._lock = threading.Lock()
        self.name = self._find(model)

    # --------------------------------------------------------------------------------------------- the questions

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[Generated | Failed]:
        route = self.route
        return self._each(prompts, lambda prompt: self._write(route, prompt, max_tokens, stop))

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_tokens: Sequence[int],
        seeds: Sequence[int],
        temperature: float,
    ) -> list[Said]:
        """An answer to each conversation (messages of role and content), sampled with its own seed.

        Log-probabilities are asked for, and dropped without a word where the server gives none.
        """
        asked: list[Json] = [
            {"messages": list(messages), "max_tokens": limit, "seed": seed}
            | {"temperature": temperature, "logprobs": True}
            for messages, limit, seed in zip(conversations, max_tokens, seeds, strict=True)
        ]
        answers = self._each(asked, lambda how: spoken(*self._post(CHAT, how)))
        return [Said(why=answer.why) if isinstance(answer, Failed) else answer for answer in answers]

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | Failed]:
        self._need_echo()
        return self._each(pairs, lambda pair: self._likelihood(*pair))

    def nats(self, texts: Sequence[str]) -> list[float | Failed]:
        self._need_echo()
        return self._each(texts, self._nats)

    def _each(
        self, questions: Iterable[Question], answer: Callable[[Question], Answer]
    ) -> list[Answer | Failed]:
        """Every answer, in order, `concurrency` at a time."""

        def attempt(question: Question) -> Answer | Failed:
            try:
                return answer(question)
            except Unanswered as problem:
                return Failed(str(problem), problem.attempts)

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(attempt, questions))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _write(self, route: str, prompt: str, max_tokens: int, stop: Sequence[str]) -> Generated:
        how: Json = {"max_tokens": max_tokens, "temperature": 0}
        if stop:
            how["stop"] = list(stop[:MOST_STOPS])
        messages = [{"role": "user", "content": prompt}]
        asked: Json = {"messages": messages} if route == CHAT else {"prompt": prompt}
        return written(*self._post(route, asked | how), stop)

    @property
    def route(self) -> str:
        """Which page writes. Looked up once; a server that is too busy to tell is taken to have /completions."""
        with self._lock:
            if not self._route:
                self._route = COMPLETIONS
                try:
                    self._post(COMPLETIONS, {"prompt": PROBE[0], "max_tokens": 1, "temperature": 0})
                except Unanswered as problem:
                    if problem.status in ABSENT:
                        self._route = CHAT
                        say(f"{self.url} has no /{COMPLETIONS}: asking /{CHAT}, in the server's template")
            return self._route

    def _likelihood(self, prompt: str, continuation: str) -> Likelihood:
        bare = prompt.rstrip()  # the spaces at its end belong to the token that follows
        continuation = prompt[len(bare) :] + continuation
        echo = self._echo(bare + continuation)
        count, attempts = echo.tokens_of(continuation), echo.attempts
        if (
            count is None
        ):  # a token across the border, or parts of a character: count those of the prompt alone
            before = self._echo(bare) if bare else None
            count = len(echo.tokens) - (len(before.tokens) if before else echo.starts)
            attempts += before.attempts if before else 0
        return echo.likelihood(count, attempts)

    def _nats(self, text: str) -> float:
        echo = self._echo(text)
        return -echo.likelihood(len(echo.tokens) - echo.starts, echo.attempts).logprob

    def _echo(self, text: str) -> Echo:
        # one token is written, and dropped: not every server takes max_tokens = 0
        asked = {"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        return echoed(*self._post(COMPLETIONS, asked), text)

    def _need_echo(self) -> None:
        """Look once whether the server tells how likely a prompt is; InputError where it does not."""
        if self._echo_was_seen:
            return
        try:
            self._likelihood(*PROBE)
        except Unanswered as problem:
            if problem.status is None or problem.status in BUSY:
                return  # there is nobody to say; the questions themselves will tell
            raise InputError(
                f"{self.url}: tasks that are scored by likelihood (choices, continuations, texts) need the "
                f"log-probabilities of a prompt, and {self.name} gives none: POST /completions with echo and logprobs "
                f"was answered with {problem}. vLLM is a server that gives them; otherwise choose tasks that "
                "generate, or evaluate the model's directory itself"
            ) from None
        self._echo_was_seen = True

    def _find(self, model: str) -> str:
        """The name of the model to ask for: the given one, if the server has it, or the server's first."""
        try:
            reply, _ = self._send("GET", "models", None)
            served = [str(entry["id"]) for entry in reply["data"]]
        except (Unanswered, KeyError, TypeError) as problem:
            status = problem.status if isinstance(problem, Unanswered) else 200
            if status is not None and model:  # it answers; not every server lists its models
                return model
            fix = "is the server up, and the address right? It usually ends in /v1"
            raise InputError(f"{self.url}: no list of models there ({problem}); {fix}") from None
        if model and served and model not in served:
            raise InputError(f"{self.url} serves no model {model!r}; it serves {', '.join(served[:10])}")
        if not model and not served:
            raise InputError(f"{self.url} lists no model; name one: {self.url}#MODEL")
        return model or served[0]

    # ------------------------------------------------------------------------------------------------ the line

    def _post(self, path: str, asked: Json) -> tuple[Json, int]:
        return self._send("POST", path, {"model": self.name} | asked)

    def _send(self, method: str, path: str, asked: Json | None) -> tuple[Json, int]:
        """The server's JSON object, and how often it was asked for it. Unanswered, or InputError for the key."""
        for attempt in range(1, TRIES + 1):
            wait = self.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            try:
                status, body, retry_after = self._once(method, path, asked)
            except (httpx.TimeoutException, TimeoutError):
                raise Unanswered(f"no answer within {self.timeout:g} s", None, attempt) from None
            except httpx.TransportError as error:
                problem = Unanswered(
                    f"the connection failed ({type(error).__name__}: {error})", None, attempt
                )
            except httpx.RequestError as error:  # not even bytes that can be decoded
                raise Unanswered(f"garbage ({type(error).__name__}: {error})", 200, attempt) from None
            else:
                if status not in BUSY:
                    return self._understand(status, body, attempt), attempt
                problem = Unanswered(f"HTTP {status}: {self._seen(body)}", status, attempt)
                wait = max(wait, retry_after)
            if attempt < TRIES:
                time.sleep(min(wait, LONGEST_PAUSE))
        raise problem

    def _once(self, method: str, path: str, asked: Json | None) -> tuple[int, bytes, float]:
        """(status, body, seconds that the server asks to wait); TimeoutError for a body that does not end."""
        limit, body = time.monotonic() + self.timeout, bytearray()
        content = None if asked is None else json.dumps(asked)
        headers = {"Content-Type": "application/json"}
        with self._http.stream(method, f"{self.url}/{path}", content=content, headers=headers) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > limit:
                    raise TimeoutError
                if len(body) > LARGEST_BODY:
                    raise Unanswered(f"more than {LARGEST_BODY:,} bytes: {self._seen(body)}", 200)
            after = response.headers.get("Retry-After", "")
            return response.status_code, bytes(body), float(after) if after.isdecimal() else 0.0

    def _understand(self, status: int, body: bytes, attempt: int) -> Json:
        if status in (401, 403):
            what = (
                "it refuses the key in OPENAI_API_KEY" if self._key else "it wants a key; set OPENAI_API_KEY"
            )
            raise InputError(f"{self.url}: {what} (HTTP {status}: {self._seen(body)})")
        if 300 <= status < 400:
            raise Unanswered(f"HTTP {status}, a redirect; name the address it leads to", status, attempt)
        if not 200 <= status < 300:
            raise Unanswered(f"HTTP {status}: {self._seen(body)}", status, attempt)
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise Unanswered(f"not a JSON object: {self._seen(body)}", status, attempt)
        return reply

    def _seen(self, body: bytes | bytearray) -> str:
        """The beginning of an answer for a message, without the key, which some servers repeat."""
        text = " ".join(bytes(body[: 2 * SHOWN]).decode(errors="replace").split())
        if self._key:
            text = text.replace(self._key, "...")
        return text[:SHOWN] or "(nothing)"


def address(spec: str) -> tuple[str, str]:
    """'http://host:port/v1#model' -> ('http://host:port/v1', 'model'). What may be secret is not repeated."""
    try:
        parts = urlsplit(spec)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"not the address of a server ({error}); write http://HOST:PORT/v1#MODEL") from None
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"the address of {host} holds a password or a query, which would end up in files; "
            "write http://HOST:PORT/v1#MODEL and put the key in OPENAI_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{spec!r} is not the address of a server; write http://HOST:PORT/v1#MODEL")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.fragment


def key() -> str:
    found = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (found.isascii() and found.isprintable()):
        raise InputError("OPENAI_API_KEY holds characters that no key has; set it anew")
    return found


# ------------------------------------------------------------------------------------------- reading an answer


@dataclass(frozen=True)
class Echo:
    """A prompt's tokens as the server reads them, each with its log-probability; the first may have none."""

    tokens: list[str]
    logprobs: list[float | None]
    best: list[float | None]  # of the likeliest token in each place
    starts: int  # tokens put before the text: 1 where the model has a start token
    attempts: int

    def tokens_of(self, ending: str) -> int | None:
        """How many of the last tokens make up `ending`; None where no border of tokens lies there."""
        text = ""
        for count, token in enumerate(reversed(self.tokens), 1):
            text = token + text
            if len(text) >= len(ending):
                return count if text == ending else None
        return None

    def likelihood(self, count: int, attempts: int) -> Likelihood:
        """Of the last `count` tokens."""
        if count < 1:
            raise Unanswered("what follows the prompt has no token of its own", 200, attempts)
        logprobs, best = self.logprobs[-count:], self.best[-count:]
        known = [logprob for logprob in logprobs if logprob is not None]
        if len(known) < count:
            raise Unanswered(
                "a token without log-probability (a text needs a start token before it, which this model lacks, or a "
                "prompt)",
                200,
                attempts,
            )
        greedy = all(top is not None and own >= top for own, top in zip(known, best, strict=True))
        return Likelihood(sum(known), greedy, count, attempts=attempts)


@dataclass(frozen=True)
class Said:
    """An answer of a chat: its tokens as bytes with their log-probabilities, where the server tells; else none.

    why: why there is no answer.
    """

    text: str = ""
    finish: Literal["stop", "length"] = "length"
    tokens: tuple[bytes, ...] = ()
    logprobs: tuple[float, ...] = ()
    why: str = ""


def spoken(reply: Json, attempts: int) -> Said:
    """What a chat completion says, and of which tokens it is made."""
    answer = written(reply, attempts, ())
    found = first_choice(reply, attempts).get("logprobs")
    told = found.get("content") if isinstance(found, dict) else None
    tokens = [token_of(entry) for entry in told] if isinstance(told, list) else []
    known = [token for token in tokens if token is not None]
    if len(known) < len(tokens):
        return Said(answer.text, answer.finish)
    return Said(answer.text, answer.finish, tuple(text for text, _ in known), tuple(p for _, p in known))


def token_of(entry: Any) -> tuple[bytes, float] | None:
    """A token's bytes and log-probability. Its text stands for bytes that are not given."""
    entry = entry if isinstance(entry, dict) else {}
    values, text, logprob = (entry.get(name) for name in ("bytes", "token", "logprob"))
    if type(logprob) not in (int, float) or not math.isfinite(logprob):
        return None
    if isinstance(values, list) and all(type(value) is int and 0 <= value < 256 for value in values):
        return bytes(values), float(logprob)
    return (text.encode(errors="replace"), float(logprob)) if isinstance(text, str) else None


def written(reply: Json, attempts: int, stop: Sequence[str]) -> Generated:
    """What a completion or a chat completion says, up to the first stop string."""
    choice = first_choice(reply, attempts)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if not isinstance(text, str):
        raise Unanswered(f"no text in {shown(choice)}", 200, attempts)
    reason = choice.get("finish_reason")
    if reason in CUT_SHORT:
        raise Unanswered(f"cut short by the server (finish_reason = {reason})", 200, attempts)
    ends = [place for string in stop if string and (place := text.find(string)) >= 0]
    finish: Literal["stop", "length"] = "length" if reason == "length" and not ends else "stop"
    usage = reply.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    tokens = tokens if isinstance(tokens, int) else 0
    return Generated(text[: min(ends, default=len(text))], tokens, finish, attempts=attempts)


def echoed(reply: Json, attempts: int, text: str) -> Echo:
    """The log-probabilities of an echoed prompt, without the token written after it."""
    found = first_choice(reply, attempts).get("logprobs")
    found = found if isinstance(found, dict) else {}
    tokens, logprobs, tops = (found.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not (strings(tokens) and numbers(logprobs) and isinstance(tops, list)):
        raise Unanswered(f"no log-probabilities in {shown(reply)}", 200, attempts)
    usage = reply.get("usage")
    prompt_tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    count = prompt_tokens if isinstance(prompt_tokens, int) else len(tokens) - 1
    if not (len(tokens) == len(logprobs) == len(tops) and 1 <= count <= len(tokens)):
        raise Unanswered(f"no echo of the prompt ({len(tokens)} tokens, of {count})", 200, attempts)
    best = [likeliest(top) for top in tops]
    starts = int(logprobs[0] is None and not (tokens[0] and text.startswith(tokens[0])))
    return Echo(tokens[:count], logprobs[:count], best[:count], starts, attempts)


def likeliest(top: Any) -> float | None:
    """The highest of the log-probabilities that are given for one place."""
    found = [*top.values()] if isinstance(top, dict) else []
    return max((value for value in found if value is not None), default=None) if numbers(found) else None


def first_choice(reply: Json, attempts: int) -> Json:
    choices = reply.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise Unanswered(f"no choices in {shown(reply)}", 200, attempts)
    return choices[0]


def strings(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def numbers(values: Any) -> TypeGuard[list[float | None]]:
    """Whether these are numbers, or null in their place."""
    return isinstance(values, list) and all(value is None or type(value) in (int, float) for value in values)


def shown(value: Json) -> str:
    return json.dumps(value)[:SHOWN]
