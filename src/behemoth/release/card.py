"""The model card: README.md of a bundle, written from its evidence and its verdict alone.

A card that people write drifts from what was measured (Mitchell et al. 2019, arXiv 1810.03993, asked for intervals;
few cards have any). Here every sentence is about a value that lies in the bundle: a claim is printed because the
verdict has a check of it, and only when the evidence holds the evaluations behind the check. Whoever has the bundle
renders the card again and compares bytes, so nothing here looks at a clock, a file, or what is installed.

Leaves out what nobody measured: who should use the model, and for what. A lab with more to say writes another page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.units import counted, human_bytes, human_count, human_duration
from behemoth.release.card_claims import claimed_and_found, other_checks, policy_told, short, stopped
from behemoth.release.evidence import CANDIDATE, Evidence
from behemoth.release.licences import MADE_HERE, folder_name
from behemoth.release.markdown import bullets, code, fenced, front_matter, grid, words
from behemoth.release.metadata import Claims, is_sparse, languages_of, metadata, result_of

CLIPPED = 300  # characters of an example
STAGES = {
    "import": "imported",
    "pretrain": "pretraining",
    "sft": "fine-tuning",
    "rl": "reinforcement learning",
    "dpo": "preferences",
}
DEMO = (
    "**Demo.** Made by a quickstart and signed with demo keys, whose passphrase everybody knows: the signatures show "
    "how a release works, not who made it."
)


def render(evidence: Evidence, verdict: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """README.md. facts: {"name", "version", "mode", "demo", "licence", "gguf": its receipt or None, "files"}.

    InputError: the verdict is of other evidence, or tells of what no evaluation stands behind.
    """
    claims = backed(evidence, verdict)
    parts = [
        front_matter(metadata(evidence, claims, facts)),
        f"# {words(facts['name'])}",
        f"> {DEMO}" if facts["demo"] else "",
        *_summary(evidence, verdict, facts),
        *_use(evidence, claims, facts),
        *claimed_and_found(evidence, claims, verdict),
        *other_checks(verdict),
        *_limits(evidence, facts),
        *_data(evidence),
        *_training(evidence),
        *_verifying(evidence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def backed(evidence: Evidence, verdict: Mapping[str, Any]) -> Claims:
    """The checks of claims. A verdict speaks of its own evidence alone, and no claim is told without an evaluation."""
    of_other = verdict["evidence"]["sha256"] != evidence.sha256
    if of_other or verdict["model"]["sha256"] != evidence.facts["model"]["sha256"]:
        raise InputError(
            "the verdict is of other evidence than the card is made from; run behemoth gate again"
        )
    claims = [check for check in verdict["checks"] if check["kind"] == "claim"]
    for check in claims:
        for model in _models(check) if check["estimate"] is not None else ():
            if result_of(evidence, model, check["task"]) is None:
                raise InputError(
                    f"the verdict tells of {check['name']!r}, and the evidence holds no evaluation of {model} on "
                    f"{check['task']}; run behemoth gate again"
                )
    return claims


def _models(check: Mapping[str, Any]) -> list[str]:
    return [model for model in (check["of"], check["than"]) if model]


# --- what it is, and how to use it --------------------------------------------------------------------------


def _summary(evidence: Evidence, verdict: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    known, policy = evidence.facts, verdict["policy"]
    size, active = (human_count(known["parameters"][key]) for key in ("all", "active"))
    kind = f"sparse model of {size} parameters, {active} at work on each token" if is_sparse(evidence) else ""
    kind = kind or f"dense model of {size} parameters"
    does = "It answers in a chat" if known["turns"] else "It continues text, and was not taught to chat"
    reads = f", in a context of {known['context_length']:,} tokens" if known.get("context_length") else ""
    return [
        f"A {kind}. {does}{reads}. Version {words(facts['version'])}, {words(facts['licence'])}.",
        f"**Verdict: {words(verdict['verdict'])}** ({words(facts['mode'])}). {words(stopped(verdict['sentence']))} "
        + policy_told(evidence, policy),
    ]


def _use(evidence: Evidence, claims: Claims, facts: Mapping[str, Any]) -> list[str]:
    if facts["mode"] == "closed":
        said = "The weights are sealed: their lab serves them. This page lies inside with them."
        return ["## Use", said]
    shown = _example(evidence, claims)
    parts = ["## Use", _transformers(evidence, shown[0] if shown else "Hello")]
    if shown:
        parts += ["In the evaluation it answered this with", fenced(shown[1])]
    parts.append(_agreement(evidence.receipt))
    if facts["gguf"]:
        same, whole = _llama_cpp(facts["gguf"])
        up_to = "in its whole context" if same == whole else f"up to {same:,} tokens of {whole:,}"
        parts += [
            fenced(f"llama-cli -m model.gguf -c {same} --jinja", "sh"),
            f"llama.cpp computes the same function {up_to}; {code('gguf-receipt.json')} has what was compared.",
        ]
    ids = (
        " Give it token ids: its tokenizer takes special tokens in a text for text."
        if _splits(evidence)
        else ""
    )
    parts.append(
        f"vLLM should read the same folder; this release was not tried in it.{ids} To train it further, give the "
        "folder to any trainer of transformers models, or to behemoth as `path` under `[model]` in a recipe."
    )
    return parts


def _transformers(evidence: Evidence, prompt: str) -> str:
    length, asked = evidence.facts.get("context_length"), json.dumps(prompt, ensure_ascii=False)
    most = f", max_length={length}" if length else ""
    whole = ['    tokenizer_kwargs={"split_special_tokens": False},'] if _splits(evidence) else []
    chat = [
        f'messages = [{{"role": "user", "content": {asked}}}]',
        "prompt = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True,',
        *whole,
        ")",
    ]
    text = [  # that the text begins is a token of its own, which this tokenizer leaves to its caller
        f'ids = [tokenizer.bos_token_id, *tokenizer({asked})["input_ids"]]',
        'prompt = {"input_ids": torch.tensor([ids])}',
    ]
    lines = [
        *([] if evidence.facts["turns"] else ["import torch"]),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # this repository, downloaded',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        *(chat if evidence.facts["turns"] else text),
        f"answer = model.generate(**prompt, do_sample=False{most})",
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
    return fenced("\n".join(lines), "python")


def _splits(evidence: Evidence) -> bool:
    """Whether the receipt was only had with special tokens kept whole, as this tokenizer by itself does not."""
    return any(
        "split_special_tokens" in check["note"] for check in (evidence.receipt or {}).get("checks", ())
    )


def _example(evidence: Evidence, claims: Claims) -> tuple[str, str] | None:
    """The first item of a claimed task and its answer, right or wrong. Only of items that are drawn and not
    collected: what stands on a card is trained on."""
    for check in claims:
        task = result_of(evidence, CANDIDATE, check["task"])
        if task is not None and task.ask == "generate" and task.source in MADE_HERE:
            first = task.records[0]
            if max(len(first["prompt"]), len(first["output"])) <= CLIPPED:
                return first["prompt"], first["output"]
    return None


def _llama_cpp(receipt: Mapping[str, Any]) -> tuple[int, int]:
    """For how many tokens it is the same function there, and how many the model is meant for: numbers, and not the
    receipt's own words, for they become a command."""
    same, whole = receipt["limits"]["context"], receipt["limits"]["of"]
    if type(same) is not int or type(whole) is not int or not 0 < same <= whole:
        raise InputError("gguf-receipt.json: its limits are no numbers of tokens; export the file again")
    return same, whole


def _agreement(receipt: Mapping[str, Any] | None) -> str:
    if not receipt or receipt["verdict"] != "match":
        return ""
    checks = {check["name"]: check for check in receipt["checks"]}
    apart = max((check["value"] for name, check in checks.items() if name.startswith("logits")), default=None)
    said = [words(checks["tensors"]["note"])] if "tensors" in checks else []
    said += [f"the largest difference of a logit {apart:.2g}"] if apart is not None else []
    return (
        f"transformers {words(receipt['versions']['transformers'])} computes the same function as the code that "
        f"trained it: {', '.join(said)} ({code('receipt.json')})."
    )


# --- where it ends -------------------------------------------------------------------------------------------


def _limits(evidence: Evidence, facts: Mapping[str, Any]) -> list[str]:
    known = evidence.facts
    tasks = [code(task) for task in evidence.evaluations[CANDIDATE].tasks]
    said = [f"It was measured on {' and '.join(tasks)}. What it does elsewhere is not known."]
    if known.get("context_length"):
        said.append(
            f"It was trained on rows of {known['context_length']:,} tokens, and not measured beyond them."
        )
    if known["turns"] == 1:
        said.append("It was taught to answer one question. Later turns of a conversation are untried.")
    same, whole = _llama_cpp(facts["gguf"]) if facts["gguf"] else (0, 0)
    if same < whole:
        said.append(f"In llama.cpp it is the same model for {same:,} tokens, and another one after them.")
    if spoken := languages_of(evidence):
        said.append(f"Its pretraining text is in: {', '.join(spoken)} (told from a sample).")
    return ["## Limits", bullets(said)]


# --- what it was made from ----------------------------------------------------------------------------------


def _data(evidence: Evidence) -> list[str]:
    if not evidence.licences:
        return []
    rows = []
    for entry in evidence.licences["inputs"]:
        links = [
            f"[{place}](release/evidence/licences/{folder_name(name)})"
            for place, name in enumerate(entry["texts"], 1)
        ]
        where = "made by the training code" if entry["made_here"] else ", ".join(links)
        count = "" if entry["documents"] is None else f"{entry['documents']:,}"
        name = words(entry["origin"] or entry["name"])
        rows.append([_stage(entry["stage"]), name, count, words(entry["licence"]), where])
    part = (evidence.provenance or {}).get("data", {}).get("pretrain")
    note = ""
    if part:
        out, text = part["held_out"], part["held_out"]["bytes"] + part["train"]["bytes"]
        note = (
            f"Of the pretraining text {counted(out['documents'], 'document')} were kept from training "
            f"({human_bytes(out['bytes'])} of {human_bytes(text)})."
        )
    return ["## Training data", grid(["stage", "source", "rows", "licence", "its text"], rows), note]


def _stage(stage: str) -> str:
    name, _, rest = stage.partition(" ")
    return words(f"{STAGES.get(name, name)} {rest}".strip())


def _training(evidence: Evidence) -> list[str]:
    known = evidence.provenance
    if not known:
        return []
    taught = {each["member"] for each in known["parents"] if each["relation"] == "distilled from"}
    rows = [
        [
            code(each["member"]),
            _stage(each["stage"]) + (", teacher of the next" if each["member"] in taught else ""),
            f"{each['steps']:,}",
            "" if each["tokens"] is None else human_count(each["tokens"]),
        ]
        for each in known["training"]
    ]
    machine, source = known["machine"], known["source"]
    commit = f"commit {short(source['commit'])}" if source["commit"] else "an unknown commit"
    device = machine.get("device") or "cpu"
    parts = [machine["processor"], device if device != "cpu" else None, known["precision"]]
    torch = (machine.get("libraries") or {}).get("torch")
    said = [
        f"Trained in {human_duration(known['seconds'])} on {words(', '.join(part for part in parts if part))}, with "
        f"behemoth {words(source['version'])} at {commit}{' (changed since)' if source['dirty'] else ''}"
        f"{f' and torch {words(torch)}' if torch else ''}; seed {known['seed']}.",
        *_same_weights(evidence),
        f"Data, checkpoints and {counted(len(known['lock']['distributions']), 'package')} are in "
        "[provenance.json](release/evidence/provenance.json), by hash or version.",
    ]
    return ["## Training", grid(["model", "stage", "steps", "tokens"], rows), " ".join(said)]


def _same_weights(evidence: Evidence) -> list[str]:
    """Whether what went out is what was trained, by hash."""
    saved = ((evidence.provenance or {}).get("checkpoint") or {}).get("files", {})
    out = (evidence.receipt or {}).get("files", {})
    weights = [name for name in saved if name.endswith(".safetensors")]
    if not weights or any(out.get(name) != saved[name] for name in weights):
        return []
    return [f"The weights are bit for bit those of its last checkpoint (SHA-256 {short(saved[weights[0]])})."]


def _verifying(evidence: Evidence) -> list[str]:
    lines = [
        "pip install behemoth-lab",
        "behemoth verify . --trust ../trust.json  # bytes, signatures, approvals; the verdict is computed again",
        "model_signing verify key . --signature model.sig --public_key ../builder.pem  # bytes, by another program",
    ]
    said = (
        f"{code('trust.json')} comes from the lab and not from here. Every item that was asked, with its answer and "
        f"score, lies in [release/evidence](release/evidence) (SHA-256 {short(evidence.sha256)}), and who approved in "
        "`release/approvals`. This page is written from these files and from nothing else."
    )
    return ["## Verify", fenced("\n".join(lines), "sh"), said]
