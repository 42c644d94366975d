"""Rollouts over HTTP, from a server that speaks as OpenAI's do."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rl_cases import model, prompts, tokenizer

from behemoth.evals.endpoint import Endpoint, Said
from behemoth.rl.curriculum import Curriculum
from behemoth.rl.rewards import Rewards
from behemoth.rl.rollouts import EndpointSampler
from behemoth.rl.source import PolicySource, Settings

ASKED = prompts(4, limit=12)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, asked))
        status, body = self.server.say(asked)
        self.answer(status, body)

    def do_GET(self):
        self.answer(200, {"data": [{"id": "parrot"}]})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers = []

    def start(say):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.say, server.asked = True, say, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server, Endpoint(f"http://127.0.0.1:{server.server_port}/v1", timeout=5, pause=0.001)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def completion(text, finish="stop", content=None):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice | ({"logprobs": {"content": content}} if content is not None else {})]}


def content(text, stop=True, with_bytes=True):
    """As vLLM tells it: every token, the one that stops included."""
    pieces = [tokenizer().token_bytes[i] for i in tokenizer().encode(text)] + [b"<|eot|>"] * stop
    return [
        {
            "token": piece.decode(errors="replace"),
            "logprob": -0.25,
            "bytes": list(piece) if with_bytes else None,
        }
        for piece in pieces
    ]


def chat(endpoint, count=1):
    return endpoint.chat(
        [[{"role": "user", "content": f"say {i}"}] for i in range(count)],
        max_tokens=[9] * count, seeds=[*range(count)], temperature=0.5,
    )  # fmt: skip


def test_chat_samples_each_conversation_with_its_seed(serve):
    server, endpoint = serve(lambda asked: (200, completion(asked["messages"][0]["content"][::-1])))
    assert chat(endpoint, 20) == [Said(f"say {i}"[::-1], "stop") for i in range(20)]
    assert {path for path, _ in server.asked} == {"/v1/chat/completions"}
    (asked,) = (asked for _, asked in server.asked if asked["seed"] == 7)
    assert asked == {
        "model": "parrot", "messages": [{"role": "user", "content": "say 7"}], "max_tokens": 9, "seed": 7,
        "temperature": 0.5, "logprobs": True,
    }  # fmt: skip


@pytest.mark.parametrize("with_bytes", [True, False])
def test_chat_reads_tokens_and_their_logprobs(serve, with_bytes):
    _, endpoint = serve(
        lambda asked: (200, completion("x the x", content=content("x the x", True, with_bytes)))
    )
    (said,) = chat(endpoint)
    assert b"".join(said.tokens) == b"x the x<|eot|>" and said.logprobs == (-0.25,) * len(said.tokens)


WHOLE = {"token": "x", "logprob": -1.0}
BROKEN = [
    "none",
    {"content": None},
    {"content": ["x"]},
    {"content": [WHOLE, {"token": "x", "logprob": None}]},
    {"content": [{"logprob": -1.0}]},
    {"content": [WHOLE, {"token": "x", "logprob": "low"}]},
    {"content": [WHOLE, {"token": "x", "logprob": float("-inf")}]},
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_broken_logprobs_are_none(serve, broken):
    reply = completion("x")
    reply["choices"][0]["logprobs"] = broken
    _, endpoint = serve(lambda asked: (200, reply))
    assert chat(endpoint) == [Said("x", "stop")]


def test_answers_that_fail_are_told_and_the_others_kept(serve, capsys):
    def say(asked):
        if asked["seed"] % 2:
            return 400, {"error": "no"}
        return 200, completion("x", "length")

    _, endpoint = serve(say)
    good, bad = chat(endpoint, 2)
    assert good == Said("x", "length")
    assert "HTTP 400" in bad.why
    groups = EndpointSampler(endpoint, tokenizer()).sample(ASKED, 8, 0, 0)
    kept = sum(map(len, groups))
    assert 0 < kept < 32
    assert f"{32 - kept} of 32 answers failed, the first: HTTP 400" in capsys.readouterr().err


def test_a_server_can_write_the_rollouts(serve):
    def say(asked):
        text = "x" * (1 + asked["seed"] % 3) + "y"
        known = content(text) if asked["seed"] % 2 else content(text)[1:]  # as if it cut the text otherwise
        return 200, completion(text, content=known)

    _, endpoint = serve(say)
    curriculum = Curriculum(ASKED, 4)
    policy, asks = model(), EndpointSampler(endpoint, tokenizer(), version=3)
    source = PolicySource(policy, asks, curriculum, Rewards({"correct": 1}), Settings(8, max_staleness=1))
    batch = source.batch(4)
    assert source.facts["version"] == 3 and source.facts["failed"] == 0
    assert 0 < source.facts["stand_ins"] < 32
    told = batch.sampled_BT == -0.25
    assert 0 < told.sum() < batch.weight
    assert (batch.sampled_BT[(batch.weights_BT == 1) & ~told] < -2).all()  # the policy knows nothing yet
