"""Public benchmarks as tasks: how each one's rows become items.

Every format is read as its authors publish it, as the Hub has it, and as the one-file collection of
MosaicML's llm-foundry writes it (`query`, `choices`, `gold`; `context`, `continuation`). ARC, BoolQ, PIQA,
LAMBADA, BLiMP and GSM8K give, letter for letter, the strings of EleutherAI's lm-evaluation-harness, so that
scores can be compared: a choice or an answer follows its prompt after one space, examples are set apart by an
empty line. llm-foundry rows hold a finished query; what is put behind it, if anything, stands in each function.

A person's own file is of the kind "rows"; `own` says which fields it may have. Left out: TruthfulQA's second
score (MC2) and its six fixed examples.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from behemoth.base.rows import Row, Wrong, strings
from behemoth.tasks import code, grading, ifeval, structure
from behemoth.tasks.task import Ask, Grade, Item

Reader = Callable[[Row], Item]
Grader = Callable[[Item, str], Grade]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Format:
    """How a benchmark is read, asked and graded."""

    read: Reader
    ask: Ask
    metric: str
    source: str = ""
    licence: str = "unknown"
    grade: Grader | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    head: str = ""  # before the examples; its {names} are the item's facts
    columns: tuple[str, ...] = ()  # of CSV files without a header


# --- choice by likelihood -----------------------------------------------------------------------------------


def arc(row: Row) -> Item:
    """ARC. llm-foundry: "{query}\\nAnswer:"."""
    if row.has("query"):
        return _choice(row, row.text("query") + "\nAnswer:")
    stem, choices, gold = _labelled(row)
    return _choice(row, f"Question: {stem}\nAnswer:", choices, gold)


def piqa(row: Row) -> Item:
    """PIQA; its labels may lie beside the rows (valid-labels.lst). llm-foundry: "{query}Answer:"."""
    if row.has("query"):
        return _choice(row, row.text("query") + "Answer:")
    choices = (row.text("sol1"), row.text("sol2"))
    return _choice(row, f"Question: {row.text('goal')}\nAnswer:", choices, row.index("label", choices))


def boolq(row: Row) -> Item:
    """BoolQ; questions about one passage are a cluster. llm-foundry: "{query}\\nAnswer:"."""
    if row.has("query"):
        query = row.text("query")
        passage = query.rpartition("\nQuestion:")[0].removeprefix("Passage: ")
        return replace(_choice(row, query + "\nAnswer:"), cluster=_cluster(passage))
    passage, answer = row.text("passage"), row.get("label", "answer")
    if answer not in (0, 1):
        raise Wrong(f"answer: {answer!r} is not true or false")
    prompt = f"{passage}\nQuestion: {row.text('question')}?\nAnswer:"
    return replace(_choice(row, prompt, ("no", "yes"), int(answer)), cluster=_cluster(passage))


def openbookqa(row: Row) -> Item:
    """OpenBookQA: the question alone. llm-foundry: "{query}"."""
    if row.has("query"):
        return _choice(row, row.text("query"))
    return _choice(row, *_labelled(row))


def commonsense_qa(row: Row) -> Item:
    """CommonsenseQA: the choices are shown, their letter is asked for. llm-foundry: "{query}"."""
    if row.has("query"):
        return _choice(row, row.text("query"))
    stem, texts, gold = _labelled(row)
    return _choice(row, _lettered(stem, texts), LETTERS[: len(texts)], gold)


def mmlu(row: Row) -> Item:
    """MMLU, as one folder of CSV files without header, or as rows with `subject`, `choices`, `answer`."""
    if row.has("choices"):
        texts, subject = row.texts("choices"), row.text("subject")
        gold = row.index("answer", texts)
    else:
        texts = tuple(row.text(letter) for letter in "ABCD")
        subject = row.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")
        gold = row.label("answer", "ABCD")
    item = _choice(row, _lettered(row.text("question"), texts), LETTERS[: len(texts)], gold)
    number = row.data["idx"] if row.has("idx") else row.number
    return replace(item, id=f"{subject}:{number}", facts={"subject": subject.replace("_", " ")})


def blimp(row: Row) -> Item:
    """BLiMP: two whole sentences after nothing, the grammatical one first. A UID names a paradigm."""
    paradigm = row.text("UID") if row.has("UID") else row.stem
    item = _choice(row, "", (row.text("sentence_good"), row.text("sentence_bad")), 0)
    number = row.data.get("pairID") or row.data.get("pair_id") or row.number
    return replace(item, id=f"{paradigm}:{number}", facts={"paradigm": paradigm})


def truthfulqa(row: Row) -> Item:
    """TruthfulQA, one true answer (MC1), without examples: the best answer against the false ones."""
    if row.has("mc1_targets"):
        targets = row.under("mc1_targets")
        if targets.has("labels"):
            choices, labels = targets.texts("choices"), targets.get_list("labels")
        else:
            choices, labels = tuple(targets.data), tuple(targets.data.values())
        if len(labels) != len(choices) or labels.count(1) != 1:
            raise Wrong("mc1_targets: exactly one choice must be labelled 1")
        question, gold = row.text("question"), labels.index(1)
    else:
        false = (part.strip() for part in row.text("Incorrect Answers").split(";"))
        choices = (row.text("Best Answer").strip(), *(part for part in false if part))
        question, gold = row.text("Question"), 0
    return _choice(row, f"Q: {question}\nA:", choices, gold)


def winograd(row: Row) -> Item:
    """Winograd schemas, by partial evaluation: the same ending after each reading of the pronoun."""
    prompts, ending = row.texts("context_options"), " " + row.text("continuation")
    gold = row.index("gold", prompts)
    return Item(row.name, prompts=prompts, choices=(ending,) * len(prompts), gold=gold)


def _choice(row: Row, prompt: str, choices: Sequence[str] = (), gold: int | None = None) -> Item:
    texts = tuple(choices) or row.texts("choices")
    right = row.index("gold", texts) if gold is None else gold
    return Item(row.name, prompt, tuple(" " + text for text in texts), gold=right)


def _labelled(row: Row) -> tuple[str, tuple[str, ...], int]:
    """Question, choices and the right one, as AI2 publishes them or as the Hub has them."""
    inner = row.under("question") if isinstance(row.data.get("question"), Mapping) else row
    stem = inner.text("question_stem", "stem", "question")
    if isinstance(inner.get("choices"), Mapping):
        options = inner.under("choices")
        texts, labels = options.texts("text"), options.texts("label")
    else:
        pairs = [Row(row.number, o if isinstance(o, Mapping) else {}) for o in inner.get_list("choices")]
        texts = tuple(pair.text("text") for pair in pairs)
        labels = tuple(pair.text("label") for pair in pairs)
    if len(texts) != len(labels):
        raise Wrong(f"choices: {len(texts)} texts and {len(labels)} labels; they go in pairs")
    return stem, texts, row.label("answerKey", labels)


def _lettered(question: str, texts: Sequence[str]) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    return "\n".join([question.strip(), *lines, "Answer:"])


def _cluster(passage: str) -> str:
    """A name for a passage; an item without one is on its own."""
    return passage and hashlib.sha256(passage.encode()).hexdigest()[:16]


# --- continuations ------------------------------------------------------------------------------------------


def lambada(row: Row) -> Item:
    """LAMBADA: the last word of a passage. llm-foundry: context and continuation, one space between."""
    if row.has("context"):
        return Item(row.name, row.text("context"), answer=" " + row.text("continuation"))
    context, _, word = row.text("text").rpartition(" ")
    if not context or not word:
        raise Wrong("text: it needs a last word after a space")
    return Item(row.name, context, answer=" " + word)


# --- free answers -------------------------------------------------------------------------------------------


def gsm8k(row: Row) -> Item:
    """GSM8K: the number after #### is the answer, all of it the worked solution."""
    solution = row.text("answer")
    _, mark, answer = solution.rpartition("####")
    if not mark or not answer.strip():
        raise Wrong(f"answer: no number after '####' in {solution[-40:]!r}")
    prompt = f"Question: {row.text('question')}\nAnswer:"
    return Item(row.name, prompt, answer=answer.strip(), solution=solution)


def svamp(row: Row) -> Item:
    """SVAMP, asked as GSM8K is. llm-foundry: the same around its context."""
    if row.has("context"):
        question, number, working = (
            row.text("context"),
            row.answer("answer"),
            row.data.get("chain_of_thought"),
        )
    else:
        body = row.text("Body").rstrip()
        question = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {row.text('Question')}"
        number, working = row.answer("Answer"), row.data.get("Equation")
    worked = f"{working} = {number}\n#### {number}" if working else ""
    return Item(row.own("ID"), f"Question: {question}\nAnswer:", answer=number, solution=worked)


def triviaqa(row: Row) -> Item:
    """TriviaQA without documents. llm-foundry: "{context}"."""
    if row.has("context"):
        prompt, answer, others = row.text("context"), row.text("answer"), row.data.get("aliases") or ()
    else:
        inner = row.under("Answer" if row.has("Answer") else "answer")
        prompt = f"Question: {row.text('question', 'Question')}?\nAnswer:".replace("??", "?")
        answer, others = inner.text("value", "Value"), inner.get("aliases", "Aliases")
    aliases = tuple(dict.fromkeys(a for a in strings(others, "aliases") if a.strip() and a != answer))
    return Item(row.own("question_id", "QuestionId"), prompt, answer=answer, answers=aliases)


def bbh(row: Row) -> Item:
    """BIG-Bench Hard. Its published worked examples (cot-prompts) are put in front by `examples`."""
    facts = {"subtask": row.stem}
    return Item(row.name, f"Q: {row.text('input')}\nA:", answer=row.text("target").strip(), facts=facts)


def bbh_grade(item: Item, output: str) -> Grade:
    """A letter where "(A)" is the reference, else the words of the final answer."""
    grade = grading.multiple_choice_letter if re.fullmatch(r"\([A-Z]\)", item.answer) else grading.exact_final
    return grade(item, output)


def ifeval_item(row: Row) -> Item:
    """IFEval: the instructions and their arguments go to the grader."""
    names, arguments = row.texts("instruction_id_list"), row.get("kwargs")
    if not isinstance(arguments, list) or [isinstance(a, Mapping) for a in arguments] != [True] * len(names):
        raise Wrong(f"kwargs: {len(names)} instructions need {len(names)} objects of arguments")
    given = [{key: value for key, value in a.items() if value is not None} for a in arguments]
    facts = {"instruction_id_list": list(names), "kwargs": given}
    return Item(row.own("key"), row.text("prompt"), facts=facts)


def humaneval(row: Row) -> Item:
    """HumanEval: the body of a function. Graded by running its test."""
    facts = {"test": row.text("test"), "entry_point": row.text("entry_point")}
    solution = row.text("canonical_solution")
    return Item(row.own("task_id"), row.text("prompt"), answer=solution, solution=solution, facts=facts)


def mbpp(row: Row) -> Item:
    """MBPP, whole or sanitised. Graded by running its tests."""
    tests, solution = row.texts("test_list"), row.text("code")
    wanted = f"{row.text('text', 'prompt')} Your code should pass these tests:"
    prompt = "\n".join(["You are an expert Python programmer, and here is your task: " + wanted, "", *tests])
    imports = strings(row.data.get("test_imports") or (), "test_imports")
    setup = "\n".join([*imports, row.data.get("test_setup_code") or ""])
    facts = {"tests": list(tests), "setup": setup}
    return Item(row.own("task_id"), prompt + "\n[BEGIN]\n", answer=solution, solution=solution, facts=facts)


# --- a person's own rows ------------------------------------------------------------------------------------


def own_choice(row: Row) -> Item:
    """`prompt` (or `query`), `choices`, `gold` (from 0). One space is put between where there is none."""
    prompt, choices = _prompt(row), row.texts("choices")
    after = tuple(_after(prompt, choice) for choice in choices)
    return _named(row, Item(row.own("id"), prompt, after, gold=row.index("gold", choices)))


def own_continuation(row: Row) -> Item:
    """`prompt` (or `context`), `continuation`: is it what the model would say itself?"""
    prompt = _prompt(row)
    return _named(row, Item(row.own("id"), prompt, answer=_after(prompt, row.text("continuation"))))


def own_answer(row: Row) -> Item:
    """`prompt`, `answer`, and if wanted `answers` (also right) and `solution` (worked out)."""
    others = row.texts("answers") if row.has("answers") else ()
    solution = row.text("solution") if row.has("solution") else ""
    return _named(
        row, Item(row.own("id"), _prompt(row), answer=row.answer("answer"), answers=others, solution=solution)
    )


def own_form(row: Row) -> Item:
    """`prompt`, and the form of what is written: `pattern` or `schema` (see `structure`); `answer` if it has one."""
    facts = {name: row.data[name] for name in ("pattern", "schema") if row.has(name)}
    if len(facts) != 1:
        raise Wrong(f"pattern or schema: a row needs one of the two, this one has {len(facts)}")
    if isinstance(facts.get("schema"), str):  # as CSV has to write it
        try:
            facts["schema"] = json.loads(facts["schema"])
        except (ValueError, RecursionError):
            raise Wrong("schema: not valid JSON") from None
    answer = row.answer("answer") if row.has("answer") else ""
    item = Item(row.own("id"), _prompt(row), answer=answer, facts=facts)
    if (tried := structure.matches_format(item, "{}")).score is None:
        raise Wrong(tried.why)
    return _named(row, item)


def own_text(row: Row) -> Item:
    """`text`: bits per byte of all of it."""
    return _named(row, Item(row.own("id"), answer=row.text("text")))


def _prompt(row: Row) -> str:
    prompt = row.get("prompt", "query", "context")
    if not isinstance(prompt, str):
        raise Wrong(f"prompt: {prompt!r} is not a text")
    return prompt


def _after(prompt: str, text: str) -> str:
    touching = prompt and not prompt[-1].isspace() and not text[:1].isspace()
    return " " + text if touching else text


def _named(row: Row, item: Item) -> Item:
    return replace(item, cluster=str(row.get("cluster"))) if row.has("cluster") else item


FORM = Format(own_form, "generate", "format", grade=structure.matches_format, stop=("\n\n",))
OWN = {  # by a field that the first row has
    "choices": Format(own_choice, "choice", "accuracy"),
    "continuation": Format(own_continuation, "continuation", "accuracy"),
    "pattern": FORM,
    "schema": FORM,
    "answer": Format(own_answer, "generate", "exact_match", grade=grading.exact, stop=("\n\n",)),
    "text": Format(own_text, "text", "bits_per_byte"),
}
GRADERS: dict[str, Grader] = {
    "exact": grading.exact,
    "words": grading.exact_words,
    "final": grading.exact_final,
    "numeric": grading.numeric,
    "alias": grading.contains_alias,
    "letter": grading.multiple_choice_letter,
    "format": structure.matches_format,
}


def own(rows: Sequence[Row], grade: Grader | None = None) -> Format:
    """What a person's file asks: choices, a continuation, an answer, a form or a text, as its first row has it.

    A grader that is asked for decides what every row of a written answer needs.
    """
    first = next((row for row in rows if not row.problem), Row(0))
    form = next((OWN[name] for name in OWN if first.has(name)), OWN["answer"])
    if grade is None or form.ask != "generate":
        return form
    return FORM if grade is FORM.grade else OWN["answer"]


# --- the formats --------------------------------------------------------------------------------------------

MATHS_STOP = ("Question:", "</s>", "<|im_end|>")
MMLU_HEAD = "The following are multiple choice questions (with answers) about {subject}.\n\n"
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")


def _likely(read: Reader, metric: str, source: str, licence: str, **more: Any) -> Format:
    return Format(read, "choice", metric, source, licence, **more)


def _written(read: Reader, metric: str, source: str, licence: str, grade: Grader, **more: Any) -> Format:
    return Format(read, "generate", metric, source, licence, grade, **more)


FORMATS: dict[str, Format] = {
    "arc": _likely(arc, "accuracy_norm", "ARC (Clark et al. 2018)", "CC-BY-SA-4.0"),
    "piqa": _likely(piqa, "accuracy_norm", "PIQA (Bisk et al. 2020)", "AFL-3.0"),
    "boolq": _likely(boolq, "accuracy", "BoolQ (Clark et al. 2019)", "CC-BY-SA-3.0"),
    "openbookqa": _likely(openbookqa, "accuracy_norm", "OpenBookQA (Mihaylov et al. 2018)", "Apache-2.0"),
    "commonsense_qa": _likely(commonsense_qa, "accuracy", "CommonsenseQA (Talmor et al. 2019)", "MIT"),
    "mmlu": _likely(
        mmlu, "accuracy", "MMLU (Hendrycks et al. 2021)", "MIT", head=MMLU_HEAD, columns=MMLU_COLUMNS
    ),
    "blimp": _likely(blimp, "accuracy", "BLiMP (Warstadt et al. 2020)", "CC-BY-4.0"),
    "truthfulqa": _likely(truthfulqa, "accuracy", "TruthfulQA (Lin et al. 2022)", "Apache-2.0"),
    "winograd": _likely(winograd, "accuracy", "WSC273 (Levesque et al. 2012)", "CC-BY-4.0"),
    "lambada": Format(
        lambada, "continuation", "accuracy", "LAMBADA (Paperno et al. 2016)", licence="CC-BY-4.0"
    ),
    "gsm8k": _written(
        gsm8k, "exact_match", "GSM8K (Cobbe et al. 2021)", "MIT", grading.gsm8k, stop=MATHS_STOP
    ),
    "svamp": _written(
        svamp, "exact_match", "SVAMP (Patel et al. 2021)", "MIT", grading.numeric, stop=MATHS_STOP
    ),
    "triviaqa": _written(
        triviaqa,
        "contains_answer",
        "TriviaQA (Joshi et al. 2017)",
        "Apache-2.0",
        grading.contains_alias,
        stop=("\n",),
        max_tokens=32,
    ),
    "bbh": _written(
        bbh,
        "exact_match",
        "BIG-Bench Hard (Suzgun et al. 2022)",
        "MIT",
        bbh_grade,
        stop=("\nQ:", "\n\n"),
        max_tokens=512,
    ),
    "ifeval": _written(
        ifeval_item,
        "prompt_strict",
        "IFEval (Zhou et al. 2023)",
        "Apache-2.0",
        ifeval.grade,
        max_tokens=1280,
    ),
    "humaneval": _written(
        humaneval,
        "pass@1",
        "HumanEval (Chen et al. 2021)",
        "MIT",
        code.humaneval,
        stop=code.HUMANEVAL_STOP,
        max_tokens=1024,
    ),
    "mbpp": _written(
        mbpp,
        "pass@1",
        "MBPP (Austin et al. 2021)",
        "CC-BY-4.0",
        code.mbpp,
        stop=code.MBPP_STOP,
        max_tokens=512,
    ),
}
