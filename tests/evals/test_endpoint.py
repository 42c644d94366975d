"""An endpoint on this machine that behaves, and then every way in which one does not."""

import json
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from behemoth.base.errors import InputError
from behemoth.evals import endpoint
from behemoth.evals.backends import Failed, Generated, Likelihood
from behemoth.evals.endpoint import Endpoint
from behemoth.evals.records import read_evaluation
from behemoth.evals.runner import evaluate
from behemoth.tasks.suite import Suite
from behemoth.tasks.task import Grade, Item, Task

DROP = "drop the line"
BOS = "<s>"


class Server(ThreadingHTTPServer):
    """Answers `say(path, asked, number of times this was asked)`: (status, body), (status, body, headers), or DROP."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, say):
        super().__init__(("127.0.0.1", 0), Handler)
        self.say, self.times, self.asked, self.headers = say, defaultdict(int), [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def count(self, path):
        return sum(asked_path == f"/v1/{path}" for asked_path, _ in self.asked)

    def handle_error(self, request, address):
        """A client that went away is what some of these tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked, server = json.loads(text or "{}"), self.server
        server.times[self.path, text] += 1
        server.asked.append((self.path, asked))
        server.headers.append(dict(self.headers))
        said = server.say(self.path, asked, server.times[self.path, text])
        if said == DROP:
            self.close_connection = True
        elif callable(said):
            said(self)
        else:
            self.send(*said)

    do_GET = do_POST

    def send(self, status, body, headers=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


def tokens_of(text, bos=BOS):
    """A word and the space before it are a token; what is not ASCII falls into bytes that have no text of their own."""
    pieces = re.findall(r" ?[^ ]+| ", text)
    broken = [part for p in pieces for part in ([p] if p.isascii() else ["\ufffd"] * len(p.encode()))]
    return [*([bos] if bos is not None else []), *broken]


def completion(text, finish="stop"):
    return {
        "choices": [{"index": 0, "text": text, "finish_reason": finish}],
        "usage": {"completion_tokens": len(text.split())},
    }


def echo(text, bos=BOS, usage=True, more=1):
    """As vLLM does: the prompt's tokens, and one more. A token costs its length; "blue" is always the likeliest."""
    tokens = [*tokens_of(text, bos), *[" and"] * more]
    logprobs = [None, *(-float(len(token)) for token in tokens[1:])]
    tops = [
        None,
        *(
            {t: p} | ({} if "blue" in t else {" the": -0.5})
            for t, p in zip(tokens[1:], logprobs[1:], strict=True)
        ),
    ]
    found = {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": [-1] * len(tokens),
    }
    reply = {"choices": [{"text": text + " and", "logprobs": found, "finish_reason": "length"}]}
    return reply | ({"usage": {"prompt_tokens": len(tokens) - more, "completion_tokens": 1}} if usage else {})


def answer(path, asked, time_number=1, **how):
    """A server that behaves: it repeats a prompt's last word, twice."""
    if path == "/v1/models":
        return 200, {"object": "list", "data": [{"id": "parrot"}, {"id": "other"}]}
    if path == "/v1/completions" and asked.get("echo"):
        return 200, echo(asked["prompt"], **how)
    if path == "/v1/completions":
        return 200, completion(" ".join([asked["prompt"].split()[-1]] * 2))
    return 404, {"error": "no such page"}


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers = []

    def start(say=None):
        servers.append(Server(say or answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def open_endpoint(server, model="", **how):
    return Endpoint(f"{server.url}#{model}" if model else server.url, **{"timeout": 5, "pause": 0.001, **how})


def test_it_writes(serve):
    server = serve()
    model = open_endpoint(server)
    assert (model.name, model.kind, model.sha256, model.batch) == ("parrot", "endpoint", "", 32)
    prompts = [f"say word{n}" for n in range(20)]
    assert model.generate(prompts, 7, ["END"]) == [
        Generated(f"word{n} word{n}", 2, "stop") for n in range(20)
    ]
    assert server.asked[-1][1].keys() == {"model", "prompt", "max_tokens", "temperature", "stop"}
    assert server.asked[-1][1] | {"prompt": ""} == {
        "model": "parrot", "prompt": "", "max_tokens": 7, "temperature": 0, "stop": ["END"],
    }  # fmt: skip


def test_stop_strings_beyond_what_servers_take_are_cut_here(serve):
    model = open_endpoint(
        serve(lambda p, a, n: answer(p, a) if "models" in p else (200, completion("one\n\ntwo", "length")))
    )
    assert model.generate(["q"], 5, ["a", "b", "c", "d", "\n\n"]) == [Generated("one", 2, "stop")]
    assert model.generate(["q"], 5, []) == [Generated("one\n\ntwo", 2, "length")]


@pytest.mark.parametrize("how", [{}, {"usage": False}, {"bos": ""}, {"more": 0}])
def test_it_tells_how_likely_a_continuation_is(serve, how):
    model = open_endpoint(serve(lambda path, asked, n: answer(path, asked, **how)))
    found = model.likelihoods(
        [("the sky is", " blue"), ("the sky is ", "grey now"), ("", "blue"), ("x", "é y")]
    )
    assert found[:3] == [Likelihood(-5, True, 1), Likelihood(-9, False, 2), Likelihood(-4, True, 1)]
    assert model.nats(["four words of text", "naïve"]) == [4 + 6 + 3 + 5, 6]


def test_a_border_that_no_token_has_is_found_by_counting_the_prompt(serve):
    server = serve()
    model = open_endpoint(server)
    assert model.likelihoods([("the sky is", " über blue")]) == [Likelihood(-6 - 5, False, 7, attempts=2)]
    assert [asked["prompt"] for _, asked in server.asked[-2:]] == ["the sky is über blue", "the sky is"]


def test_without_a_start_token_a_first_token_has_no_probability(serve):
    model = open_endpoint(serve(lambda path, asked, n: answer(path, asked, bos=None)))
    given, alone = model.likelihoods([("the sky is", " blue"), ("", "blue")])
    assert given == Likelihood(-5, True, 1)
    assert isinstance(alone, Failed) and "start token" in alone.why
    (text,) = model.nats(["some text"])
    assert isinstance(text, Failed) and "start token" in text.why


def only_chat(path, asked, n):
    if path == "/v1/chat/completions":
        said = asked["messages"][0]["content"][::-1]
        return 200, {
            "choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]
        }
    return answer(path, asked) if path == "/v1/models" else (404, {"error": "this is a chat model"})


def no_logprobs(path, asked, n):
    return answer(path, asked | {"echo": False})


def refuses_echo(path, asked, n):
    return (400, {"error": "echo is not supported"}) if asked.get("echo") else answer(path, asked)


def echo_ignored(path, asked, n):
    if not asked.get("echo"):
        return answer(path, asked)
    found = {"tokens": [" and"], "token_logprobs": [-1.0], "top_logprobs": [{" and": -1.0}]}
    return 200, {"choices": [{"text": " and", "logprobs": found}], "usage": {"prompt_tokens": 4}}


def test_a_server_that_only_chats_still_writes(serve, capsys):
    server = serve(only_chat)
    model = open_endpoint(server)
    assert [found.text for found in model.generate(["abc", "xyz"] * 10, 5, [])] == ["cba", "zyx"] * 10
    assert capsys.readouterr().err.count("asking /chat/completions") == 1
    assert server.count("completions") == 1
    model.generate(["abc"], 5, [])
    assert server.count("completions") == 1


def test_one_evaluation_does_not_mix_completions_with_chats(serve, tmp_path, capsys):
    """A server that only chats goes away, and comes back with completions."""
    state = {"chats": 0, "both": False}

    def say(path, asked, n):
        if state["both"]:
            return answer(path, asked)
        state["chats"] += path == "/v1/chat/completions"
        return (401, b"") if state["chats"] > 40 else only_chat(path, asked, n)

    server = serve(say)
    words = tuple(Item(f"{n}", f"say w{n}", answer=f"w{n} w{n}") for n in range(64))
    suite = Suite("s", (Task("words", "generate", words, "exact_match", exact),))
    with pytest.raises(InputError, match="key"):
        evaluate(open_endpoint(server), server.url, suite, tmp_path)
    assert read_evaluation(tmp_path / "parrot").route == "chat/completions"
    state["both"] = True
    found = evaluate(open_endpoint(server), server.url, suite, tmp_path)
    assert found.tasks["words"].summary["score"] == 1 and found.route == "completions"
    assert "was asked through /chat/completions then, and through /completions now" in capsys.readouterr().err
    assert (found.precision, found.device) == ("", "")


@pytest.mark.parametrize("say", [only_chat, no_logprobs, refuses_echo, echo_ignored])
def test_likelihoods_from_a_server_without_them_are_refused_with_what_to_do(serve, say):
    model = open_endpoint(serve(say))
    with pytest.raises(
        InputError, match=r"need the log-probabilities of a prompt, and parrot gives none.*vLLM"
    ):
        model.likelihoods([("a", " b")])
    with pytest.raises(InputError, match="vLLM"):
        model.nats(["a"])


@pytest.mark.parametrize("trouble", [(429, {}, {"Retry-After": "0"}), (500, b"oops"), (503, b""), DROP])
def test_a_busy_broken_or_lost_answer_is_asked_for_again(serve, trouble):
    server = serve(lambda path, asked, n: trouble if asked and n < 3 else answer(path, asked))
    model = open_endpoint(server)
    assert model.generate(["say it"], 5, []) == [Generated("it it", 2, "stop", attempts=3)]
    assert model.likelihoods([("a", " blue")])[0].attempts == 3


def test_it_waits_longer_each_time_and_as_long_as_the_server_asks(serve, monkeypatch):
    waits = []
    monkeypatch.setattr(endpoint.time, "sleep", waits.append)
    asks = {1: {}, 2: {"Retry-After": "7"}, 3: {"Retry-After": "9000"}}
    server = serve(lambda path, asked, n: (429, b"", asks[n]) if asked and n in asks else answer(path, asked))
    assert open_endpoint(server, pause=1.0).generate(["a b"], 5, [])[0].attempts == 4
    assert 0.5 <= waits[0] <= 1 and waits[1:3] == [7, endpoint.LONGEST_PAUSE]


@pytest.mark.parametrize(
    ("trouble", "why", "attempts"),
    [
        ((500, b"<html>oops</html>"), "HTTP 500: <html>oops</html>", 4),
        ((429, {"error": "slow down"}), 'HTTP 429: {"error": "slow down"}', 4),
        (DROP, "the connection failed", 4),
        ((400, {"error": "the prompt is too long"}), 'HTTP 400: {"error": "the prompt is too long"}', 1),
        ((200, b""), "not a JSON object: (nothing)", 1),
        ((200, b"hello"), "not a JSON object: hello", 1),
        ((200, b"[1]"), "not a JSON object: [1]", 1),
        ((200, b"[" * 100_000), "not a JSON object: [[[", 1),
        ((200, b"\xff\xfe\x00"), "not a JSON object", 1),
        ((200, {}), "no choices in {}", 1),
        ((200, {"choices": []}), "no choices in", 1),
        ((200, {"choices": ["text"]}), "no choices in", 1),
        ((200, {"choices": [{"text": None}]}), 'no text in {"text": null}', 1),
        ((200, {"choices": [{"text": 7}]}), 'no text in {"text": 7}', 1),
        ((200, {"choices": [{"message": {"content": None}}]}), "no text in", 1),
        ((200, {"choices": [{"text": "a", "finish_reason": "content_filter"}]}), "cut short by the server", 1),
        ((200, b"zip?", {"Content-Encoding": "gzip"}), "garbage (DecodingError", 1),
        ((200, b"x" * 3000), "more than 2,000 bytes: xxx", 1),
        ((200, b"{", {"Content-Length": "5"}), "the connection failed", 4),
        ((302, b"", {"Location": "http://secret.example/"}), "HTTP 302, a redirect; name the address", 1),
    ],
)  # fmt: skip
def test_what_is_no_answer_fails_with_what_was_seen(serve, monkeypatch, trouble, why, attempts):
    monkeypatch.setattr(endpoint, "LARGEST_BODY", 2000 if "more than" in why else 2**20)

    def say(path, asked, n):
        if path == "/v1/models" or "good" in asked["prompt"]:
            return answer(path, asked)
        return trouble

    good, bad = open_endpoint(serve(say), timeout=3).generate(["good", "bad"], 5, [])
    assert good.text == "good good"
    assert isinstance(bad, Failed) and why in bad.why and bad.attempts == attempts
    assert "secret" not in bad.why and len(bad.why) < 400


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        {"tokens": "abc"},
        {"tokens": ["a", " blue", " and"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {}, {}]},
        {
            "tokens": ["a", " blue", " and"],
            "token_logprobs": [None, "-1", -1],
            "top_logprobs": [None, {}, {}],
        },
        {
            "tokens": ["a", " blue", " and"],
            "token_logprobs": [None, None, -1],
            "top_logprobs": [None, {}, {}],
        },
        {"tokens": [], "token_logprobs": [], "top_logprobs": []},
    ],
)
def test_log_probabilities_that_are_none_fail_by_item(serve, logprobs):
    def say(path, asked, n):
        odd = asked.get("prompt") == "a blue"
        return (200, {"choices": [{"text": "a", "logprobs": logprobs}]}) if odd else answer(path, asked)

    bad, good = open_endpoint(serve(say)).likelihoods([("a", " blue"), ("b", " blue")])
    assert isinstance(bad, Failed) and bad.why
    assert good == Likelihood(-5, True, 1)


@pytest.mark.parametrize("trickle", [False, True])
def test_a_slow_answer_is_a_time_out(serve, trickle):
    over = threading.Event()

    def trickling(handler):
        """A byte now and then: never silent, never done."""
        handler.send_response(200)
        handler.end_headers()
        while not over.wait(0.05):
            handler.wfile.write(b" ")

    def say(path, asked, n):
        if trickle and asked:
            return trickling
        over.wait(2 if asked else 0)
        return answer(path, asked)

    model, began = open_endpoint(serve(say), timeout=0.3), time.monotonic()
    found = model.generate(["slow"], 5, [])
    seconds = time.monotonic() - began
    over.set()
    assert found == [Failed("no answer within 0.3 s")]
    assert seconds < 1.5


def test_questions_are_asked_side_by_side(serve):
    everyone = threading.Barrier(4, timeout=5)

    def say(path, asked, n):
        if "a b" in asked.get("prompt", ""):
            everyone.wait()
        return answer(path, asked)

    found = open_endpoint(serve(say), concurrency=4).generate(["a b"] * 8, 5, [])
    assert found == [Generated("b b", 2, "stop")] * 8


def test_the_key_is_sent_and_never_shown(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret\n")

    def say(path, asked, n):
        if asked.get("prompt") == "bad":
            return 400, {"error": "you sent sk-very-secret, and more"}
        return (401, b"wrong: sk-very-secret") if asked.get("prompt") == "stop" else answer(path, asked)

    server = serve(say)
    model = open_endpoint(server)
    (failed,) = model.generate(["bad"], 5, [])
    assert failed.why == 'HTTP 400: {"error": "you sent ..., and more"}'
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
    with pytest.raises(InputError, match="refuses the key in OPENAI_API_KEY") as refusal:
        model.generate(["a", "stop", "b"], 5, [])
    assert "secret" not in str(refusal.value)
    monkeypatch.setenv("OPENAI_API_KEY", "smart “quotes”")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds characters that no key has"):
        open_endpoint(server)


def test_a_server_that_wants_a_key_says_so(serve):
    with pytest.raises(InputError, match="it wants a key; set OPENAI_API_KEY"):
        open_endpoint(serve(lambda path, asked, n: (401, b"who are you")))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("http://user:hunter2@host/v1#m", "holds a password or a query"),
        ("http://host/v1?key=hunter2#m", "holds a password or a query"),
        ("http://host:eighty/v1", "not the address of a server"),
        ("ftp://host/v1", "'ftp://host/v1' is not the address of a server; write http://HOST:PORT/v1#MODEL"),
        ("http:///v1", "is not the address of a server"),
    ],
)
def test_a_wrong_address_is_named_and_secrets_in_it_are_not(spec, said):
    with pytest.raises(InputError, match=re.escape(said)) as refusal:
        Endpoint(spec)
    assert "hunter2" not in str(refusal.value)


def test_which_model(serve):
    server = serve()
    assert open_endpoint(server, "other").name == "other"
    with pytest.raises(InputError, match="serves no model 'third'; it serves parrot, other"):
        open_endpoint(server, "third")
    unlisted = serve(lambda path, asked, n: (404, b"") if path == "/v1/models" else answer(path, asked))
    assert open_endpoint(unlisted, "org/any").name == "org/any"
    with pytest.raises(InputError, match=r"no list of models there \(HTTP 404.*ends in /v1"):
        open_endpoint(unlisted)
    empty = serve(lambda path, asked, n: (200, {"data": []}))
    with pytest.raises(InputError, match="lists no model; name one"):
        open_endpoint(empty)


def test_nobody_there(serve):
    server = serve()
    server.server_close()
    with pytest.raises(
        InputError, match=r"no list of models there \(the connection failed .*is the server up"
    ):
        open_endpoint(server, "parrot")


def exact(item, output):
    return Grade(float(output == item.answer))


def test_an_evaluation_through_an_endpoint(serve, tmp_path):
    """Choices, texts and answers; a question that fails for good counts as wrong, and is the only one asked again."""
    state = {"broken": True}

    def say(path, asked, n):
        if state["broken"] and asked.get("prompt") == "say w7":
            return 200, b"<html>"
        return (503, b"") if n == 1 and asked.get("prompt") == "say w5" else answer(path, asked)

    server = serve(say)
    words = tuple(Item(f"{n}", f"say w{n}", answer=f"w{n} w{n}") for n in range(40))
    skies = tuple(Item(f"{n}", f"sky {n} is", (" blue", " yellow"), gold=n % 2) for n in range(10))
    suite = Suite(
        "s",
        (
            Task("words", "generate", words, "exact_match", exact),
            Task("skies", "choice", skies, "accuracy"),
            Task("texts", "text", (Item("1", answer="some text"), Item("2", answer="more")), "bits_per_byte"),
        ),
    )
    found = evaluate(open_endpoint(server), server.url, suite, tmp_path)
    assert {name: task.summary["score"] for name, task in found.tasks.items()} == {
        "words": 39 / 40, "skies": 0.5, "texts": pytest.approx(13 / 0.6931471805599453 / 13),
    }  # fmt: skip
    bad = found.tasks["words"].records[7]
    assert (bad["score"], bad["error"], bad["attempts"]) == (0.0, "not a JSON object: <html>", 1)
    assert found.tasks["words"].records[5]["attempts"] == 2
    state["broken"], before = False, len(server.asked)
    found = evaluate(open_endpoint(server), server.url, suite, tmp_path)
    assert found.tasks["words"].summary["score"] == 1
    assert [asked.get("prompt") for _, asked in server.asked[before:]] == [None, "The sky is", "say w7"]


@pytest.mark.parametrize("trouble", [(500, b"down"), (200, b"<html>"), DROP])
def test_an_endpoint_that_answers_nothing_is_named_and_nothing_is_scored(serve, tmp_path, trouble):
    server = serve(lambda path, asked, n: answer(path, asked) if path == "/v1/models" else trouble)
    words = tuple(Item(f"{n}", f"say w{n}", answer=f"w{n} w{n}") for n in range(40))
    suite = Suite("s", (Task("words", "generate", words, "exact_match", exact),))
    with pytest.raises(InputError, match=rf"^{server.url}: the endpoint answered none of 32 questions"):
        evaluate(open_endpoint(server), server.url, suite, tmp_path)
    assert not read_evaluation(tmp_path / "parrot").tasks
    assert not list(tmp_path.rglob("words.jsonl"))
