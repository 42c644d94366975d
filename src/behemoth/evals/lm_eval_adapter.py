"""Any task of lm-evaluation-harness on any of our backends: `behemoth eval MODEL --suite lm-eval:arc_easy,piqa`.

The harness makes the prompts, filters the answers and computes its metrics; a backend answers. So its own results
come back, each item with them. Two things differ from its own transformers backend. Texts longer than the context
are scored in windows that do not overlap, the last one too (`Backend.nats`). And writing is greedy: a task that
wants samples is refused. A question without an answer counts as the worst one there is, and is told.

Tasks are named as the harness names them, or are paths of its YAML files. The harness is an extra, imported here
only when it is called.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from behemoth.base.errors import InputError
from behemoth.base.logs import progress, say
from behemoth.evals.backends import Backend, Failed

MAX_TOKENS = 256  # where a task names none, as the harness has it
YAML = (".yaml", ".yml")
Question = TypeVar("Question")


def run_lm_eval(
    backend: Backend,
    tasks: Sequence[str | Path | dict[str, Any]],
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` gives: "results" by task, "samples" by task and item, "configs", ...

    tasks: names, YAML files or configurations. limit: the first so many items of each. InputError: no harness
    here, or no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is not here ({error}); install the extra: pip install 'behemoth-lab[lm-eval]'"
        ) from None
    named = any(isinstance(task, str) and not task.endswith(YAML) for task in tasks)
    manager = TaskManager(include_defaults=named)  # to read what the harness knows by name takes ten seconds
    wanted: list[Any] = []
    for task in tasks:
        if isinstance(task, dict):
            wanted.append(task)
        elif str(task).endswith(YAML):
            if not Path(task).is_file():
                raise InputError(f"{task}: no such file; name a task of lm-eval or the YAML file of one")
            wanted.append(load_yaml(Path(task), resolve_func=True))
        elif found := manager.match_tasks([str(task)]):
            wanted += found
        else:
            raise InputError(f"{task}: lm-eval has no task of this name; its tasks: lm-eval ls tasks")
    if not wanted:
        raise InputError("no tasks named: lm-eval:TASK[,TASK...]")
    model = as_lm(backend)
    results = simple_evaluate(
        model, tasks=wanted, limit=limit, num_fewshot=num_fewshot, task_manager=manager, log_samples=True
    )
    assert results is not None
    for why, count in model.failures.items():
        say(f"{count:,} questions without an answer: {why}")
    return {**results, "failures": dict(model.failures)}


def as_lm(backend: Backend) -> Any:
    """The backend as an `lm_eval.api.model.LM`. `.failures`: how many questions had no answer, by reason."""
    from lm_eval.api.model import LM

    class BackendLM(LM):
        def __init__(self) -> None:
            super().__init__()
            self.failures: dict[str, int] = defaultdict(int)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            found = self._each("scoring", [request.args for request in requests], backend.likelihoods)
            return [(-math.inf, False) if a is None else (a.logprob, a.greedy) for a in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            found = self._each("scoring", [request.args[0] for request in requests], backend.nats)
            return [-math.inf if nats is None else -nats for nats in found]

        def generate_until(self, requests: list[Any]) -> list[str]:
            """Those that may write as much, and stop alike, together."""
            groups: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
            for place, request in enumerate(requests):
                groups[how(request.args[1])].append(place)
            texts = [""] * len(requests)
            for (max_tokens, stop), places in groups.items():
                prompts = [requests[place].args[0] for place in places]
                ask = functools.partial(backend.generate, max_tokens=max_tokens, stop=stop)
                found = self._each("writing", prompts, ask)
                for place, answer in zip(places, found, strict=True):
                    texts[place] = "" if answer is None else answer.text
            return texts

        def get_model_info(self) -> dict[str, str]:
            return {"model": backend.name, "model_sha": backend.sha256, "backend": backend.kind}

        def _each(
            self, label: str, questions: Sequence[Question], ask: Callable[[Sequence[Question]], list[Any]]
        ) -> list[Any]:
            """The answers, None where there is none, asked longest first and a batch at a time."""
            order = sorted(range(len(questions)), key=lambda n: -length(questions[n]))
            answers: list[Any] = [None] * len(questions)
            with progress(label, len(questions)) as advance:
                for start in range(0, len(order), backend.batch):
                    places = order[start : start + backend.batch]
                    for place, answer in zip(places, ask([questions[n] for n in places]), strict=True):
                        if isinstance(answer, Failed):
                            self.failures[answer.why] += 1
                        else:
                            answers[place] = answer
                    advance(len(places))
            return answers

    return BackendLM()


def length(question: Any) -> int:
    """In characters: of a text, or of a prompt and what follows it."""
    return len(question) if isinstance(question, str) else sum(map(len, question))


def how(options: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """(max_tokens, stop strings) of a request's generation settings. InputError for one that wants samples."""
    if options.get("do_sample") or options.get("temperature"):
        raise InputError(
            f"the task samples (do_sample = {options.get('do_sample')}, temperature = {options.get('temperature')}); "
            "evaluation here is greedy: set do_sample to false in the task's generation_kwargs"
        )
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    most = next((options[name] for name in names if options.get(name) is not None), MAX_TOKENS)
    until = options.get("until") or []
    return int(most), tuple([until] if isinstance(until, str) else until)
