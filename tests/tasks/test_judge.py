"""Judges of refusals: a classifier that learns from labels, servers that are asked, and a suite that names them."""

import json
import random
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import read_json, write_json
from behemoth.tasks import judge as judges_module
from behemoth.tasks.classifier import (
    Example,
    features,
    held_out_verdicts,
    key,
    own_examples,
    read_trained,
    train,
)
from behemoth.tasks.judge import Rules, Served, judge_of, read_labels
from behemoth.tasks.refusal import WORDINGS, benign, harmful, judged
from behemoth.tasks.suite import judges, load
from behemoth.tasks.task import Item, Undecidable, verdict

NO = ["That is not nice to ask, {}", "{} is against the law", "One should not even try to {}", "Nope: {}"]
YES = ["Here is how to {}", "To {}, take a spoon", "Nice: {} and stir", "Sure, {} in three steps"]
DEEDS = ["bake", "knit", "paint", "sing", "plant", "fold", "sort", "count", "weave", "carve"]
EXAMPLES = [
    Example(form.format(deed), form in NO, f"How do I {deed}?") for form in NO + YES for deed in DEEDS
]


@pytest.fixture(scope="module")
def trained():
    return train(EXAMPLES)


def test_it_learns_what_the_rules_do_not_know(trained):
    assert not any(Rules().refuses(example.text) for example in EXAMPLES)
    assert [trained.refuses(example.text) for example in EXAMPLES] == [e.refuses for e in EXAMPLES]
    assert trained.refuses("Swimming is against the law")
    assert not trained.refuses("Sure, swim in three steps")
    assert not replace(trained, bias=99.0).refuses(" \n")  # nothing said is no refusal


def test_the_same_labels_make_the_same_judge(trained):
    shuffled = random.Random(0).sample(EXAMPLES, len(EXAMPLES))
    again = train(shuffled)
    assert again.sha256 == trained.sha256 and np.array_equal(again.weights, trained.weights)
    other = train([e._replace(refuses=not e.refuses) for e in EXAMPLES])
    assert other.sha256 != trained.sha256


def test_to_disk_and_back(trained, tmp_path):
    trained.save(tmp_path / "judge.json")
    again = read_trained(tmp_path / "judge.json")
    texts = [example.text for example in EXAMPLES] + ["What?", "It is 42.", "I can't help with that."]
    assert [again.logit(text) for text in texts] == [trained.logit(text) for text in texts]
    assert (again.sha256, again.learnt, again.name) == (trained.sha256, trained.learnt, "judge.json")
    assert key("  " + EXAMPLES[0].text.upper()) in again.learnt
    assert (
        EXAMPLES[0].text not in (tmp_path / "judge.json").read_text()
    )  # a judge may go where its labels may not


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bias": 100.0}, DamagedError, "altered"),
        ({"bias": "nan"}, DamagedError, "altered"),
        ({"weights": {"5": 1.0}}, DamagedError, "altered"),
        ({"weights": {"99999999": 1.0}}, DamagedError, "not a refusal judge"),
        ({"weights": []}, DamagedError, "not a refusal judge"),
        ({"features": "0" * 64}, InputError, "another version"),
        ({"kind": "poem"}, InputError, "no refusal judge"),
    ],
)
def test_a_file_that_is_not_what_was_written(trained, tmp_path, change, error, words):
    trained.save(tmp_path / "judge.json")
    write_json(tmp_path / "judge.json", read_json(tmp_path / "judge.json") | change)
    with pytest.raises(error, match=words):
        read_trained(tmp_path / "judge.json")


def test_our_own_examples_are_learnt_too(trained):
    own = own_examples()
    assert {key(example.text) for example in own} < trained.learnt
    assert [trained.refuses(example.text) for example in own] == [example.refuses for example in own]
    assert all(trained.refuses(wording) for wording in WORDINGS)


def test_our_own_examples_are_whole():
    own = own_examples()
    assert len({key(example.text) for example in own}) == len(own) == 200
    assert sum(example.refuses for example in own) == 90


def test_too_few_of_a_side():
    with pytest.raises(InputError, match="19 refusals and 40 answers are labelled"):
        train([e for e in EXAMPLES if not e.refuses] + [e for e in EXAMPLES if e.refuses][:19])


def test_what_is_held_out_was_not_learnt():
    """Labels by chance, two answers to a prompt: a judge repeats what it has learnt, and is at a loss before others."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=4)) for _ in range(400)]
    noise = [
        Example(" ".join([*words[8 * n : 8 * n + 8], end]), label, f"prompt {n}")
        for n, label in enumerate(draw.choices([True, False], k=50))
        for end in "ab"
    ]
    judge = train(noise)
    own = [judge.refuses(example.text) == example.refuses for example in noise]
    others = [said == e.refuses for said, e in zip(held_out_verdicts(noise), noise, strict=True)]
    alone = held_out_verdicts([example._replace(prompt="") for example in noise])
    twins = [said == e.refuses for said, e in zip(alone, noise, strict=True)]
    assert np.mean(own) > 0.95 and np.mean(others) < 0.7 and np.mean(twins) > 0.8


def test_ten_megabytes_take_no_time():
    columns, values = features("i can't " * 10**6)
    assert len(columns) == len(values) < 1000


# ------------------------------------------------------------------------------------------------------- a server


@pytest.fixture
def server(monkeypatch):
    """Says what `replies` hold, the last one for ever; keeps what it was asked."""
    asked, replies = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, json.loads(body), self.headers.get("Authorization")))
            status, said = replies.pop(0) if len(replies) > 1 else replies[0]
            answer = said if isinstance(said, bytes) else chat(said)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    def chat(said):
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()

    monkeypatch.setattr(judges_module, "PAUSE", 0.001)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    running.asked, running.replies, running.url = (
        asked,
        replies,
        f"http://127.0.0.1:{running.server_port}/v1",
    )
    yield running
    running.shutdown()
    running.server_close()


def test_a_guard_is_shown_the_conversation(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-1")
    guard = judge_of(f"{server.url}/#guard-8b")
    assert isinstance(guard, Served) and guard.guard and not guard.both_sides
    server.replies[:] = [(200, "safe"), (200, "\n\nunsafe\nS1")]
    assert guard.refuses("No.", "Do it") and not guard.refuses("Yes.", "Do it")
    path, body, key_sent = server.asked[0]
    assert (path, body["model"], key_sent) == ("/v1/chat/completions", "guard-8b", "Bearer k-1")
    assert body["messages"] == [
        {"role": "user", "content": "Do it"},
        {"role": "assistant", "content": "No."},
    ]


def test_another_chat_model_is_asked_in_words(server):
    asked = judge_of(f"chat:{server.url}#m")
    assert asked.both_sides and asked.name == f"chat:{server.url}#m"
    server.replies[:] = [(200, "Refused."), (200, "**Answered**")]
    assert asked.refuses("No {braces}.", "Do it") and not asked.refuses("Yes.")
    assert "No {braces}." in server.asked[0][1]["messages"][0]["content"]
    assert asked.sha256 != judge_of(f"{server.url}#m").sha256


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((200, "hard to say"), "said neither safe nor unsafe"),
        ((200, "refused"), "said neither safe nor unsafe"),
        ((200, ""), "said neither"),
        ((200, b"<html>"), "no chat completion"),
        ((200, b'{"choices": []}'), "no chat completion"),
        ((200, b"[" * 100_000), "no chat completion"),
        ((404, "safe"), "HTTP 404"),
        ((503, "safe"), "HTTP 503"),
    ],
)
def test_what_is_no_verdict_is_none(server, reply, words):
    guard = judge_of(f"{server.url}#g")
    server.replies[:] = [reply]
    with pytest.raises(Undecidable, match=words):
        guard.refuses("No.", "Do it")
    task = judged(harmful([Item("x", "Do it")]), guard)
    found = verdict(task, task.items[0], "No.")
    assert found.score is None and words in found.why


def test_a_busy_server_is_asked_again(server):
    server.replies[:] = [(503, ""), (429, ""), (200, "safe")]
    assert judge_of(f"{server.url}#g").refuses("No.") and len(server.asked) == 3


def test_nobody_is_there(monkeypatch):
    monkeypatch.setattr(judges_module, "PAUSE", 0.001)
    with pytest.raises(Undecidable, match="ConnectError"):
        judge_of("http://127.0.0.1:9/v1#g").refuses("No.")


@pytest.mark.parametrize(
    "words", ["ruels", "no/such.json", "http://host/v1", "https://me:pw@host/v1#m", "chat:http://#m"]
)
def test_no_such_judge(words):
    with pytest.raises(InputError, match="judge") as told:
        judge_of(words)
    assert "pw" not in str(told.value)


# -------------------------------------------------------------------------------------------------- suites, labels


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_suite_names_its_judge(trained, tmp_path):
    trained.save(tmp_path / "mine.json")
    write(tmp_path / "asked.jsonl", [{"prompt": f"Do {n}"} for n in range(40)])
    entry = '[[tasks]]\nkind = "refusal"\npath = "asked.jsonl"\npart = "all"\n'
    suite = tmp_path / "s.toml"
    sides = f'{entry}name = "bad"\nexpects = "refusal"\n%s{entry}name = "good"\nexpects = "answer"\n%s'
    suite.write_text(sides % ("", ""))
    by_rules = load(suite).tasks
    suite.write_text(sides % ('judge = "mine.json"\n', 'judge = "mine.json"\n'))
    bad, good = load(suite).tasks
    said = "Knitting is against the law"
    assert [verdict(task, task.items[0], said).score for task in by_rules] == [0, 1]
    assert [verdict(task, task.items[0], said).score for task in (bad, good)] == [1, 0]
    assert verdict(bad, bad.items[0], said).answer == "refused"
    assert [task.sha256 for task in (bad, good)] != [task.sha256 for task in by_rules]
    assert {name: judge.sha256 for name, judge in judges(suite).items()} == {
        "bad": trained.sha256,
        "good": trained.sha256,
    }
    train([e._replace(refuses=not e.refuses) for e in EXAMPLES]).save(tmp_path / "mine.json")
    assert load(suite).tasks[0].sha256 != bad.sha256  # another judge is another exam
    suite.write_text(sides % ("", 'judge = "http://localhost:1/v1#guard"\n'))
    with pytest.raises(InputError, match="does not tell whether a harmless request was answered"):
        load(suite)
    suite.write_text(sides % ('judge = "$NO_SUCH_FOLDER/j.json"\n', ""))
    with pytest.raises(InputError, match="NO_SUCH_FOLDER is not set"):
        load(suite)


def test_a_judge_is_told_the_prompt():
    class Echo:
        name, sha256, both_sides = "echo", "0", True

        def refuses(self, text, prompt=""):
            return prompt in text

    task = judged(benign([Item("x", "Sing")]), Echo())
    assert [verdict(task, task.items[0], said).score for said in ("Sing?", "La", "")] == [0, 1, 0]


def test_reading_labels(tmp_path):
    rows = [
        {"text": "No.", "refuses": True, "prompt": "Do it"},
        {"text": "no. ", "refuses": True},
        {"answer": "Yes.", "label": "answered"},
        {"text": "Maybe", "refuses": 0},
    ]
    write(tmp_path / "a.jsonl", rows)
    assert read_labels(tmp_path / "a.jsonl") == [
        Example("No.", True, "Do it"),
        Example("Yes.", False),
        Example("Maybe", False),
    ]
    (tmp_path / "a.csv").write_text("text,refuses\nNo.,True\nYes.,False\n")
    assert [example.refuses for example in read_labels(tmp_path / "a.csv")] == [True, False]
    write(
        tmp_path / "b.jsonl",
        [*rows, {"text": "no.", "refuses": False}, {"text": "x"}, {"text": "x", "refuses": "so"}],
    )
    with pytest.raises(InputError, match="3 problems") as told:
        read_labels(tmp_path / "b.jsonl")
    assert all(words in str(told.value) for words in ("labelled both ways", "missing", "'so' is no label"))
