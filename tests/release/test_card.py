"""The card: what the Hub makes of it, and where every number on it comes from."""

import copy
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from behemoth.base.errors import InputError
from behemoth.base.files import read_json
from behemoth.base.units import human_bytes, human_count, human_duration, percent
from behemoth.evals.records import Evaluation, TaskResult, told
from behemoth.release.card import render
from behemoth.release.evidence import CANDIDATE, Evidence, read_evidence
from behemoth.release.gate import decide
from behemoth.release.markdown import code, fenced, front_matter, words
from behemoth.release.metadata import metadata
from behemoth.release.policy import parse_policy
from behemoth.stats.paired import number

MODEL, BASE, DIGEST = "a1" * 32, "b2" * 32, "c3" * 32
POLICY = {
    "name": "small",
    "version": "2",
    "exam": True,
    "held_out": True,
    "baselines": {"base": "student"},
    "claims": [
        {"name": "sums", "says": "adds better", "task": "sums", "is": "better", "than": "base", "margin": 0.1},
        {"name": "text", "says": "still knows its text", "task": "held_out", "is": "not worse", "than": "base",
         "margin": 0.05},
        {"name": "bar", "says": "adds most of the time", "task": "sums", "is": "at least", "bar": 0.75},
    ],
    "safety": {"waived": "nothing harmful can be done with sums"},
    "tamper": {"waived": "nothing was taught that could be undone"},
    "licences": {"allow": ["PSF-2.0"], "model": "Apache-2.0"},
    "approvals": {"open": {"approver": 1}, "closed": {"approver": 1}},
}  # fmt: skip


def record(item, model, score, output, **more):
    given = {"cluster": "", "prompt": f"What is {item}?", "answer": "18", "read": "", "why": "", "error": ""}
    return {"item": item, "model": model, "score": score, "output": output, "metrics": {}, **given, **more}


def sums(model, share, items=200):
    rows = [
        record(f"{n} + 9", model, float(n % 100 < 100 * share), f"{n} + 9 = {n + 9}") for n in range(items)
    ]
    return TaskResult("sums", "exact_match", "generate", "d4" * 32, rows, None, "generated", "CC0-1.0")


def texts(model, bits):
    rows = [
        record(f"doc {n}", model, 1.0, "", metrics={"nats": 700 * bits * (1 + n % 7 / 50), "bytes": 1000 + n})
        for n in range(240)
    ]
    return TaskResult("held_out", "bits_per_byte", "text", "e5" * 32, rows)


def evaluation(model, share, bits, *more):
    tasks = {task.name: task for task in (sums(model, share), texts(model, bits), *more)}
    return Evaluation("m", model, "m", "exam", tasks, finished="2026-01-02T03:04:05+00:00")


@pytest.fixture
def evidence():
    receipt = {
        "verdict": "match",
        "checks": [
            {"name": "tensors", "value": 0, "limit": 0, "ok": True, "note": "51 tensors, bit for bit"},
            {"name": "logits, text", "value": 5.7e-06, "limit": 1e-4, "ok": True, "note": ""},
            {
                "name": "chat template",
                "value": 0,
                "limit": 0,
                "ok": True,
                "note": "with split_special_tokens",
            },
        ],
        "files": {"model.safetensors": "f6" * 32},
        "versions": {"transformers": "5.23.0"},
    }
    entries = [
        (
            "python-0",
            "pretrain",
            "PSF-2.0",
            574,
            "Python 3.11.7 standard library",
            False,
            ["python-0-LICENSE.txt"],
        ),
        ("generated", "sft", "CC0-1.0", 2851, "", True, []),
        ("sums", "rl", "CC0-1.0", None, "", True, []),
    ]
    keys = ("name", "stage", "licence", "documents", "origin", "made_here", "texts")
    provenance = {
        "source": {"version": "0.1.0", "commit": "ab12" * 10, "dirty": False},
        "machine": {"processor": "A processor x 2", "device": "cpu", "libraries": {"torch": "2.13.0"}},
        "precision": "bf16",
        "lock": {"distributions": ["a==1", "b==2", "c==3"]},
        "data": {
            "pretrain": {
                "train": {"documents": 514, "bytes": 8871509},
                "held_out": {"documents": 60, "bytes": 1753708},
                "languages": {"documents": 60, "found": {"en": 53, "ca": 7}},
            }
        },
        "checkpoint": {"member": "sft", "files": {"config.json": "00", "model.safetensors": "f6" * 32}},
        "parents": [
            {"member": "teacher", "relation": "distilled from"},
            {"member": "student", "relation": "further trained"},
        ],
        "training": [
            {"member": "teacher", "stage": "pretrain", "steps": 585, "tokens": 1197855},
            {"member": "student", "stage": "pretrain", "steps": 293, "tokens": 599939},
            {"member": "sft", "stage": "sft", "steps": 150, "tokens": None},
        ],
        "seconds": 314.74,
        "seed": 0,
        "hub": {"datasets": ["allenai/c4"], "base_models": []},
    }  # fmt: skip
    facts = {
        "model": {"name": "run-sft", "sha256": MODEL},
        "baselines": {"base": {"spec": "student", "sha256": BASE}},
        "tasks": {
            "sums": {"sha256": "d4" * 32, "items": 200},
            "held_out": {"sha256": "e5" * 32, "items": 240},
        },
        "policy_number": 1,
        "earlier_verdicts": [],
        "earlier_looks": [],
        "policy_sha256": "",
        "parameters": {"all": 1198656, "active": 510528},
        "context_length": 256,
        "turns": 1,
    }
    evaluations = {CANDIDATE: evaluation(MODEL, 0.9, 1.71), "base": evaluation(BASE, 0.2, 1.72)}
    doctor = {"findings": [{"check": "weights are numbers", "verdict": "ok"}]}
    licences = {"inputs": [dict(zip(keys, entry, strict=True)) for entry in entries], "model_texts": []}
    return Evidence(
        DIGEST, facts, evaluations, receipt=receipt, doctor=doctor, licences=licences, provenance=provenance
    )


@pytest.fixture
def verdict(evidence):
    return decide(parse_policy(POLICY), "open", evidence)


def facts(**more):
    limits = {
        "context": 64,
        "of": 256,
        "reasons": ["chunks"],
        "said": "the same function up to 64 tokens of 256",
    }
    gguf = {"verdict": "match", "limits": limits, "files": {"model.gguf": "00" * 32}}
    given = {"name": "run-sft", "version": "2", "mode": "open", "demo": True, "licence": "Apache-2.0"}
    return given | {"gguf": gguf, "files": ["model.safetensors"]} | more


def shown(text):
    """As the Hub lays it out, without the metadata."""
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text.split("---\n", 2)[2])


# --- numbers ------------------------------------------------------------------------------------------------

OURS = ("answer[0,", "shape[1]", "[1](")  # of the program, and links that are counted


def numbers_of(text):
    for ours in OURS:
        text = text.replace(ours, "")
    return set(re.findall(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)*(?:e-?\d+)?", text))


def leaves(value):
    if isinstance(value, dict):
        yield len(value)
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def ways(value):
    """How a value of the evidence may stand on a card."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, str):
        yield from numbers_of(value)
        return
    yield from (f"{value}", f"{value:,}", f"{value:.2g}", human_count(value))
    yield from numbers_of(" ".join([human_bytes(value), human_duration(value), percent(value)]))
    for unit in ("points", "bits per byte"):
        for sign in ("", "+"):
            yield number(value, unit, sign)


def known_numbers(evidence, verdict, given):
    """Every number that the card may show. Of the items only their number and their scores: they are all numbers."""
    tasks = [task for one in evidence.evaluations.values() for task in one.tasks.values()]
    scores = [
        told(value, task)
        for task in tasks
        if task.interval is not None
        for value in (task.summary["score"], task.interval.low, task.interval.high)
    ]
    part = evidence.provenance["data"]["pretrain"]
    both = part["train"]["bytes"] + part["held_out"]["bytes"]
    pieces = [evidence.facts, evidence.receipt, evidence.licences, evidence.provenance, verdict, given, both]
    pieces += [len(task.records) for task in tasks]
    pieces += [percent(task.interval.level) for task in tasks if task.interval is not None]
    return {way for value in leaves(pieces) for way in ways(value)} | set(scores)


def invented(text, evidence, verdict, given):
    """The numbers on a card that come from nowhere; the example is the evidence's own text."""
    records = [task.records[0] for task in evidence.evaluations[CANDIDATE].tasks.values()]
    digests = re.findall(r"`[0-9a-f]{16}`", text)
    everything = (
        json.dumps([evidence.facts, evidence.receipt, evidence.provenance, verdict]) + evidence.sha256
    )
    assert all(digest.strip("`") in everything for digest in digests)
    shown = [part for one in records for part in (one["prompt"], one["output"]) if part]
    for own in (*shown, *digests):
        text = text.replace(own, "")
    known = known_numbers(evidence, verdict, given)
    return {found for found in numbers_of(text) if found.strip(",") not in known}


@pytest.mark.parametrize("mode", ["open", "closed"])
def test_every_number_on_the_card_is_in_the_evidence(evidence, mode):
    verdict, given = decide(parse_policy(POLICY), mode, evidence), facts(mode=mode)
    text = render(evidence, verdict, given)
    assert len(numbers_of(text)) > 20
    assert invented(text, evidence, verdict, given) == set()
    assert invented(text + "97.3 points, 12,345 items", evidence, verdict, given) == {"97.3", "12,345"}


def test_every_number_on_the_card_of_a_real_bundle_is_in_its_evidence():
    """BEHEMOTH_BUNDLE: an open bundle, such as the quickstart's."""
    if (place := os.environ.get("BEHEMOTH_BUNDLE")) is None:
        pytest.skip("BEHEMOTH_BUNDLE is not set to a bundle")
    bundle = Path(place)
    text, evidence = (bundle / "README.md").read_text(), read_evidence(bundle / "release" / "evidence")
    manifest, verdict = (read_json(bundle / "release" / f"{name}.json") for name in ("manifest", "verdict"))
    gguf = bundle / "gguf-receipt.json"
    given = manifest | {"gguf": read_json(gguf) if gguf.exists() else None}
    assert len(numbers_of(text)) > 20
    assert invented(text, evidence, verdict, given) == set()
    assert ModelCard(text).data.eval_results


def test_every_number_of_a_claim_shows_on_the_card(evidence, verdict):
    before = render(evidence, verdict, facts())
    for key, value in {
        "estimate": 0.123, "low": 0.011, "high": 0.222, "level": 0.9, "items": 199, "wanted": "more than that",
        "status": "fails", "says": "another claim", "reason": "too near", "score": 0.77, "other": 0.66, "against": 7,
    }.items():  # fmt: skip
        changed = copy.deepcopy(verdict)
        next(check for check in changed["checks"] if check["kind"] == "claim")[key] = value
        assert render(evidence, changed, facts()) != before, key


def test_the_scores_of_both_models_are_those_of_the_evidence(evidence, verdict):
    text = render(evidence, verdict, facts())
    assert "**+70.0** points" in text  # a difference
    assert "**90.0** points" in text  # a score
    assert "this model 90.0, `base` 20.0" in text
    for check in verdict["checks"][1:4]:
        assert f"| {check['wanted']} |" in text
    for said in (
        "fewer are better",
        "like none of these",
        "`held_out` is text that was set aside and not trained on",
    ):
        assert said in text


def test_what_has_no_score_counts_against_the_model_wherever_its_score_is_told(evidence):
    """In the table, in the head for the Hub, and of what was measured beside: one number."""
    half = sums(MODEL, 1.0)
    for one in half.records[:100]:
        one["score"] = None
    asked = evaluation(MODEL, 0.9, 1.71, half, replace(half, name="weak"))
    judged = replace(evidence, evaluations=evidence.evaluations | {CANDIDATE: asked})
    verdict = decide(parse_policy(POLICY), "open", judged)
    text = render(judged, verdict, facts())
    assert (
        "200 items, 100 answers without a score and counted against the claim<br>this model 50.0, `base` 20.0"
        in text
    )
    assert "`weak` 50.0 (exact_match, 200 items, 100 of them without a score and counted as wrong)" in text
    found = next(each for each in ModelCard(text).data.eval_results if each.dataset_name == "sums")
    assert found.metric_value == 50.0
    assert found.metric_name == "exact_match, 200 items, 100 of them without a score and counted as wrong"
    assert invented(text, judged, verdict, facts()) == set()


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "What had to be shown was fixed before the evaluation, in the policy `small`"),
        ({"policy_number": 2}, "This was not the first look: it is no. 2 of this run's policies."),
        ({"earlier_looks": ["evals/exam/base"]}, "first look: 1 evaluation had asked the same before."),
        (
            {"earlier_verdicts": [{"verdict": "hold", "mode": "open", "policy": "00" * 32, "model": MODEL}]},
            "first look: 1 verdict came before: hold (open).",
        ),
    ],
)
def test_the_policy_came_first_only_where_nobody_had_looked(evidence, known, said):
    judged = replace(evidence, facts=evidence.facts | known)
    text = render(judged, decide(parse_policy(POLICY), "open", judged), facts())
    assert said in text
    assert ("was fixed before the evaluation" in text) == (not known)


def test_the_policy_is_not_told_to_be_first_where_nobody_counted(evidence):
    uncounted = {key: value for key, value in evidence.facts.items() if key != "policy_number"}
    judged = replace(evidence, facts=uncounted)
    text = render(judged, decide(parse_policy(POLICY), "open", judged), facts())
    assert "was fixed before" not in text and "nobody counted the policies of this run" in text


def test_it_is_said_how_each_model_was_asked(evidence):
    ways = {CANDIDATE: "chat", "base": "chat"}

    def page(stages=("pretrain",), **changed):
        ways.update(changed)
        asked = {
            name: replace(one, route=ways[name], precision="bf16", device="cpu")
            for name, one in evidence.evaluations.items()
        }
        known = evidence.provenance | {
            "training": [{"member": "student", "stage": s, "steps": 3, "tokens": None} for s in stages]
        }
        judged = replace(evidence, evaluations=asked, provenance=known)
        return render(judged, decide(parse_policy(POLICY), "open", judged), facts())

    never = "`base` was never taught that template: a part of a difference between answers is their form."
    assert (
        f"Questions were put to this model and `base` in the chat template, in bf16 on cpu. {never}" in page()
    )
    assert never not in page(stages=("pretrain", "sft"))
    assert never not in page(stages=())
    apart = page(base="")
    assert "to this model in the chat template, in bf16 on cpu; to `base` in bf16 on cpu." in apart
    assert never not in apart


def test_why_levels_differ_is_said_where_claims_are_several(evidence, verdict):
    said = "to hold, more than the policy's 95% is asked of it (Holm's method); to fail, 95% is enough."
    assert said in render(evidence, verdict, facts())
    alone = decide(parse_policy(POLICY | {"claims": POLICY["claims"][:1]}), "open", evidence)
    assert said not in render(evidence, alone, facts())


# --- what can be told ---------------------------------------------------------------------------------------


def test_a_claim_that_the_verdict_does_not_have_is_not_told(evidence, verdict):
    assert "adds better" in render(evidence, verdict, facts())
    fewer = verdict | {"checks": [check for check in verdict["checks"] if check["name"] != "sums"]}
    assert "adds better" not in render(evidence, fewer, facts())


@pytest.mark.parametrize("gone", [CANDIDATE, "base"])
def test_a_claim_that_no_evaluation_stands_behind_is_refused(evidence, verdict, gone):
    empty = {gone: replace(evidence.evaluations[gone], tasks={"held_out": texts(MODEL, 1.7)})}
    unasked = replace(evidence, evaluations={**evidence.evaluations, **empty})
    with pytest.raises(InputError, match=f"no evaluation of {gone} on sums"):
        render(unasked, verdict, facts())


def test_a_verdict_of_other_evidence_or_another_model_is_refused(evidence, verdict):
    with pytest.raises(InputError, match="other evidence"):
        render(replace(evidence, sha256="00" * 32), verdict, facts())
    with pytest.raises(InputError, match="other evidence"):
        render(evidence, verdict | {"model": {"name": "x", "sha256": BASE}}, facts())


def test_what_was_measured_and_not_claimed_is_told_too(evidence):
    task = replace(sums(MODEL, 0.03), name="weak")
    weak = evaluation(MODEL, 0.9, 1.71, task)
    told_of = replace(evidence, evaluations=evidence.evaluations | {CANDIDATE: weak})
    text = render(told_of, decide(parse_policy(POLICY), "open", told_of), facts())
    assert (
        "nothing claimed: `weak` 3.0 (exact\\_match, 200 items)" in text or "`weak` 3.0 (exact_match" in text
    )


def test_what_is_not_measured_is_said(evidence, verdict):
    text = render(evidence, verdict, facts())
    assert (
        "**not measured**: harmful compliance and over-refusal: nothing harmful can be done with sums."
        in text
    )
    assert "nothing was taught that could be undone" in text


@pytest.mark.parametrize("outcome", ["hold", "unknown"])
def test_a_verdict_that_is_no_release_says_so_and_why(evidence, outcome):
    if outcome == "hold":
        judged = replace(
            evidence, evaluations=evidence.evaluations | {CANDIDATE: evaluation(MODEL, 0.2, 1.71)}
        )
    else:
        few = {CANDIDATE: sums(MODEL, 0.9, 20), "base": sums(BASE, 0.2, 20)}
        asked = {
            name: replace(one, tasks=one.tasks | {"sums": few[name]})
            for name, one in evidence.evaluations.items()
        }
        tasks = evidence.facts["tasks"] | {"sums": {"sha256": "d4" * 32, "items": 20}}
        judged = replace(evidence, evaluations=asked, facts=evidence.facts | {"tasks": tasks})
    verdict = decide(parse_policy(POLICY), "open", judged)
    text = render(judged, verdict, facts())
    assert f"**Verdict: {outcome}**" in text
    claim = next(check for check in verdict["checks"] if check["name"] == "sums")
    assert words(claim["reason"]) in text
    assert invented(text, judged, verdict, facts()) == set()


def test_a_check_is_told_once_with_its_reason(evidence, verdict):
    changed = copy.deepcopy(verdict)
    stop = next(check for check in changed["checks"] if check["kind"] == "stop")
    stop |= {"status": "fails", "sentence": "it was looked over: fails", "reason": "two faults"}
    assert "- **fails**: it was looked over; two faults.\n" in render(evidence, changed, facts())
    stop["sentence"] = "it was looked over, two faults: fails"
    assert "- **fails**: it was looked over, two faults.\n" in render(evidence, changed, facts())


def test_only_drawn_items_are_shown(evidence, verdict):
    assert "What is 0 + 9?" in render(evidence, verdict, facts())
    collected = replace(sums(MODEL, 0.9), source="somebody's exam")
    told_of = evaluation(MODEL, 0.9, 1.71, collected)
    hidden = replace(evidence, evaluations=evidence.evaluations | {CANDIDATE: told_of})
    assert "What is 0 + 9?" not in render(hidden, verdict, facts())


def test_the_demo_mark_and_the_modes(evidence, verdict):
    assert "**Demo.**" in render(evidence, verdict, facts())
    earnest = render(evidence, verdict, facts(demo=False))
    assert "Demo" not in earnest
    assert "demo" not in ModelCard(earnest).data.tags
    closed = render(evidence, verdict, facts(mode="closed"))
    assert "from_pretrained" not in closed
    assert "llama-cli" not in closed


def test_pieces_that_were_not_gathered_are_left_out(evidence, verdict):
    bare = replace(evidence, receipt=None, licences=None, provenance=None, doctor=None)
    bare = replace(
        bare, facts=bare.facts | {"parameters": {"all": 64, "active": 64}, "turns": 0, "context_length": None}
    )
    text = render(bare, verdict, facts(gguf=None))
    assert "dense model of 64 parameters" in text
    assert "not taught to chat" in text
    assert not re.search(r"Training data|llama\.cpp|split_special_tokens|None", text)


def test_the_weights_are_told_to_be_the_checkpoints_only_where_they_are(evidence, verdict):
    assert "bit for bit those of its last checkpoint" in render(evidence, verdict, facts())
    other = replace(evidence, receipt=evidence.receipt | {"files": {"model.safetensors": "00" * 32}})
    assert "last checkpoint" not in render(other, verdict, facts())


def test_a_card_is_a_function_of_what_it_is_given(evidence, verdict):
    again = render(copy.deepcopy(evidence), json.loads(json.dumps(verdict)), facts())
    assert again == render(evidence, verdict, facts())


# --- the Hub ------------------------------------------------------------------------------------------------


def test_the_hubs_library_reads_the_metadata_as_it_is_meant(evidence, verdict):
    data = ModelCard(render(evidence, verdict, facts())).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert (data.language, data.datasets) == (["en"], ["allenai/c4"])
    assert data.tags == ["behemoth", "mixture-of-experts", "conversational", "gguf", "demo"]
    assert data.model_name == "run-sft"
    assert [(each.dataset_name, each.metric_type, each.metric_value) for each in data.eval_results] == [
        ("sums", "exact_match", 90.0),
        ("held_out", "bits_per_byte", float(told(evidence.evaluations[CANDIDATE].tasks["held_out"].summary["score"],
                                                 evidence.evaluations[CANDIDATE].tasks["held_out"]))),
    ]  # fmt: skip


def test_scores_go_round_through_the_hubs_library(evidence, verdict):
    data = ModelCard(render(evidence, verdict, facts())).data
    again = ModelCardData(model_name=data.model_name, eval_results=data.eval_results, license=data.license)
    assert again.to_dict()["model-index"] == data.to_dict()["model-index"]
    assert ModelCard(f"---\n{data.to_yaml()}\n---\n").data.to_dict() == data.to_dict()


def test_the_head_is_the_yaml_that_was_meant(evidence, verdict):
    claims = [check for check in verdict["checks"] if check["kind"] == "claim"]
    wanted = metadata(evidence, claims, facts())
    head = render(evidence, verdict, facts()).split("---\n", 2)[1]
    assert yaml.safe_load(head) == wanted


@pytest.mark.parametrize(
    "value",
    [
        "no",
        "1.0",
        "a: b",
        "- x",
        "# c",
        "it's",
        'a "b"',
        "é",
        "\U0001f600",
        "a\nb",
        "\x85",
        "2026-01-01",
        "~",
        "",
    ],
)
def test_yaml_keeps_any_text(value):
    head = front_matter({"a": value, "b": [value], "c": [{"d": {"e": value}}]})
    meant = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    assert yaml.safe_load(head.strip("-")) == {"a": meant, "b": [meant], "c": [{"d": {"e": meant}}]}


@pytest.mark.parametrize(
    ("spdx", "wanted"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        (
            "LicenseRef-House",
            {"license": "other", "license_name": "licenseref-house", "license_link": "LICENSE"},
        ),
    ],
)
def test_licences_as_the_hub_calls_them(evidence, spdx, wanted):
    found = metadata(evidence, [], facts(licence=spdx))
    assert {key: value for key, value in found.items() if key.startswith("license")} == wanted
    assert "model-index" not in found


# --- text of people -----------------------------------------------------------------------------------------

NASTY = (
    "<script>alert(1)</script> <!-- --> **bold** [link](http://evil.example) | a | ![x](http://evil.example/x) `code` "
    "\n# heading\n- item http://evil.example www.evil.example me@evil.example $x$ ~~no~~ &lt; _it_ \\"
)


def test_text_of_people_stays_text(evidence, verdict):
    changed = copy.deepcopy(verdict)
    for check in changed["checks"]:
        check.update(says=NASTY, sentence=NASTY, reason=NASTY)
    changed |= {"sentence": NASTY, "not_measured": [NASTY for _ in verdict["not_measured"]]}
    inputs = [
        entry | {"name": NASTY, "origin": NASTY, "licence": NASTY} for entry in evidence.licences["inputs"]
    ]
    nasty = replace(evidence, licences={"inputs": inputs})
    page, plain = (shown(render(*of, facts())) for of in ((nasty, changed), (evidence, verdict)))
    assert "<script" not in page
    assert "<script" not in render(nasty, changed, facts())
    assert not re.search(
        r"(?<!\()https?://|www\.|@", render(nasty, changed, facts())
    )  # what the Hub makes a link of
    for tag in ("<a ", "<img", "<h1", "<h2", "<td", "<li", "<s>", "<em>", "<blockquote"):
        assert page.count(tag) == plain.count(tag), tag
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; &lt;!-- --&gt; **bold** [link](http://evil.example) | a |"
        in page
    )


def test_what_is_fenced_cannot_leave_its_fence():
    assert fenced("a") == "```\na\n```"
    assert fenced("a\n````\n# b", "sh") == "`````sh\na\n````\n# b\n`````"


def test_a_name_cannot_leave_its_code():
    assert code("a`b|c\nd") == "`abcd`"
    assert code("``") == "` `"
