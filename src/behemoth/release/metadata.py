"""The head of a model card: what the Hub reads of a model (huggingface/hub-docs, modelcard.md).

Scores are those of the evaluations in the evidence, on the tasks that something is claimed on; intervals are of claims,
and stand beside them on the page. Languages are told from a sample of the training text; a data set or a base model is
named only where its name on the Hub is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from behemoth.base.units import counted
from behemoth.evals.records import TaskResult, told
from behemoth.release.evidence import CANDIDATE, Evidence

# Licences that the Hub knows by their SPDX identifier in small letters; any other is "other", with its name.
ON_THE_HUB = re.compile(
    r"apache-2\.0|mit|isc|zlib|wtfpl|unlicense|bsd-[23]-clause|[la]?gpl-[23]\.0|mpl-2\.0|cc0-1\.0|"
    r"cc-by(-nc)?(-nd|-sa)?-[234]\.0|odbl-1\.0|llama[234][.\d]*|gemma"
)
SPOKEN = 0.2  # of the documents looked at: a language of fewer is a mistake of the detector's
Claims = list[Mapping[str, Any]]  # checks of a verdict


def metadata(evidence: Evidence, claims: Claims, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub reads (huggingface/hub-docs, modelcard.md)."""
    hub = (evidence.provenance or {}).get("hub", {})
    tags = {
        "behemoth": True,
        "mixture-of-experts": is_sparse(evidence),
        "conversational": bool(evidence.facts["turns"]),
        "gguf": bool(facts["gguf"]),
        "demo": facts["demo"],
    }
    results = list(_results(evidence, claims))
    found: dict[str, Any] = {
        **_licence(str(facts["licence"])),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": languages_of(evidence),
        "tags": [tag for tag, here in tags.items() if here],
        "datasets": hub.get("datasets", []),
        "base_model": hub.get("base_models", []),
        "model-index": [{"name": str(facts["name"]), "results": results}] if results else [],
    }
    return {key: value for key, value in found.items() if value}


def _licence(spdx: str) -> dict[str, str]:
    if ON_THE_HUB.fullmatch(spdx.lower()):
        return {"license": spdx.lower()}
    return {"license": "other", "license_name": spdx.lower(), "license_link": "LICENSE"}


def languages_of(evidence: Evidence) -> list[str]:
    """Of the pretraining text, as ISO 639-1 has them."""
    seen = (evidence.provenance or {}).get("data", {}).get("pretrain", {}).get("languages", {})
    names = [name for name, count in seen.get("found", {}).items() if count >= SPOKEN * seen["documents"]]
    return sorted({name.split("-")[0] for name in names} - {"unknown"})


def _results(evidence: Evidence, claims: Claims) -> Iterator[dict[str, Any]]:
    """The model's score on each task that something is claimed on."""
    for name in dict.fromkeys(check["task"] for check in claims if check["of"] == CANDIDATE):
        task = result_of(evidence, CANDIDATE, name)
        if task is not None and (score := score_of(task)):
            yield {
                "task": {"type": "text-generation"},
                "dataset": {"type": name, "name": name},
                "metrics": [{"type": task.metric, "value": float(score), "name": measured_as(task)}],
            }


def is_sparse(evidence: Evidence) -> bool:
    return bool(evidence.facts["parameters"]["active"] < evidence.facts["parameters"]["all"])


def result_of(evidence: Evidence, model: str, task: str) -> TaskResult | None:
    found = evidence.evaluations.get(model)
    return found.tasks.get(task) if found else None


def score_of(task: TaskResult) -> str:
    """What has no score is wrong, as in a claim; a text has no worst score, and is left out."""
    found = task.summary
    return told(found["score"] if found["worst"] is None else found["worst"], task)


def measured_as(task: TaskResult) -> str:
    is_text, open_ = task.ask == "text", task.summary["unscored"]
    items = counted(len(task.records), "document" if is_text else "item")
    how = "left out" if is_text else "counted as wrong"
    return f"{task.metric}, {items}" + (f", {open_:,} of them without a score and {how}" if open_ else "")
