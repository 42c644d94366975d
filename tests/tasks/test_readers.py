"""Every format on small files written here, and on the real ones where they are."""

import csv
import gzip
import json
import random
from contextlib import suppress
from pathlib import Path

import pytest

from behemoth.base.errors import InputError
from behemoth.base.rows import Place
from behemoth.tasks.formats import FORMATS
from behemoth.tasks.readers import Wanted, read_task
from behemoth.tasks.task import Task

LABELLED = {"text": ["red", "blue"], "label": ["A", "B"]}
ANSWERS = {"value": "Onion", "aliases": ["onions", "Onion"]}
ROWS = {  # kind: the published format, then others it is found in
    "arc": [
        {"id": "x", "question": "Why?", "choices": LABELLED, "answerKey": "B"},
        {
            "question": {
                "stem": "Why?",
                "choices": [{"text": "red", "label": "1"}, {"text": "blue", "label": "2"}],
            },
            "answerKey": "2",
        },
        {"query": "Question: Why?", "choices": ["red", "blue"], "gold": 1},
    ],
    "piqa": [
        {"goal": "Why?", "sol1": "red", "sol2": "blue", "label": 1},
        {"query": "Question: Why?\n", "choices": ["red", "blue"], "gold": 1},
    ],
    "boolq": [
        {"question": "is it", "passage": "It is.", "answer": True, "title": "It"},
        {"question": "is it", "passage": "It is.", "label": 1, "idx": 7},
        {"query": "Passage: It is.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1},
    ],
    "openbookqa": [
        {"question_stem": "Sky is", "choices": LABELLED, "answerKey": "B "},
        {"query": "Sky is", "choices": ["red", "blue"], "gold": 1},
    ],
    "commonsense_qa": [
        {"question": "Sky?", "choices": LABELLED, "answerKey": "B"},
        {"query": "Sky?\nA. red\nB. blue\nAnswer:", "choices": ["A", "B"], "gold": 1},
    ],
    "mmlu": [{"question": "Sky?", "subject": "high_school_physics", "choices": ["red", "blue"], "answer": 1}],
    "blimp": [{"sentence_good": "She is.", "sentence_bad": "She are.", "UID": "agree", "pairID": "3"}],
    "truthfulqa": [
        {"Question": "Sky?", "Best Answer": "blue", "Incorrect Answers": "red; green;"},
        {"question": "Sky?", "mc1_targets": {"choices": ["blue", "red", "green"], "labels": [1, 0, 0]}},
        {"question": "Sky?", "mc1_targets": {"blue": 1, "red": 0, "green": 0}},
    ],
    "winograd": [{"context_options": ["The cat", "The dog"], "continuation": "purrs.", "gold": 0}],
    "lambada": [
        {"text": "He was at the sea"},
        {"context": "He was at the", "continuation": "sea"},
    ],
    "gsm8k": [{"question": "2 and 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}],
    "svamp": [
        {
            "ID": "c-1",
            "Body": "Two and three",
            "Question": "Sum?",
            "Equation": "( 2.0 + 3.0 )",
            "Answer": 5.0,
        },
        {"context": "Two and three. Sum?", "chain_of_thought": "( 2.0 + 3.0 )", "answer": "5"},
    ],
    "triviaqa": [
        {"question": "Which?", "question_id": "q", "answer": ANSWERS},
        {"context": "Question: Which?\nAnswer:", "answer": "Onion", "aliases": ["onions"]},
    ],
    "bbh": [{"input": "not True is", "target": "False"}],
    "ifeval": [
        {
            "key": 1,
            "prompt": "Write.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{"num_words": None}],
        }
    ],
    "humaneval": [
        {
            "task_id": "H/0",
            "prompt": "def f():\n",
            "entry_point": "f",
            "canonical_solution": "    return 1\n",
            "test": "assert f() == 1",
        }
    ],
    "mbpp": [
        {"task_id": 2, "text": "Write f.", "code": "def f(): ...", "test_list": ["assert f() is None"]},
        {"task_id": 2, "prompt": "Write f.", "code": "def f(): ...", "test_list": ["assert f() is None"]},
    ],
}


def read(path: Path, kind: str, **more) -> Task:
    return read_task(Wanted(kind, Place(path), **more)).task


@pytest.fixture
def write(tmp_path):
    def write(rows, name="some.jsonl") -> Path:
        path = tmp_path / name
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def first(path: Path, kind: str, **more):
    return read(path, kind, **more).items[0]


# --- formats ------------------------------------------------------------------------------------------------


def test_every_format_has_a_row_here():
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("kind", [kind for kind, rows in ROWS.items() if len(rows) > 1])
def test_the_same_question_is_read_from_each_published_form(write, kind):
    items = [first(write([row], f"{n}.jsonl"), kind) for n, row in enumerate(ROWS[kind])]
    asked = {
        (i.prompt.removeprefix("Passage: "), i.choices, i.gold, i.answer, i.answers, i.cluster) for i in items
    }
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("kind", "prompt", "choices", "gold"),
    [
        ("arc", "Question: Why?\nAnswer:", (" red", " blue"), 1),
        ("piqa", "Question: Why?\nAnswer:", (" red", " blue"), 1),
        ("boolq", "It is.\nQuestion: is it?\nAnswer:", (" no", " yes"), 1),
        ("openbookqa", "Sky is", (" red", " blue"), 1),
        ("commonsense_qa", "Sky?\nA. red\nB. blue\nAnswer:", (" A", " B"), 1),
        (
            "mmlu",
            "The following are multiple choice questions (with answers) about high school physics.\n\n"
            "Sky?\nA. red\nB. blue\nAnswer:",
            (" A", " B"),
            1,
        ),
        ("blimp", "", (" She is.", " She are."), 0),
        ("truthfulqa", "Q: Sky?\nA:", (" blue", " red", " green"), 0),
    ],
)
def test_choices(write, kind, prompt, choices, gold):
    item = first(write([ROWS[kind][0]]), kind)
    assert (item.prompt, item.choices, item.gold) == (prompt, choices, gold)


def test_answers(write):
    lambada = first(write([ROWS["lambada"][0]]), "lambada")
    assert (lambada.prompt, lambada.answer) == ("He was at the", " sea")
    gsm8k = first(write([ROWS["gsm8k"][0]]), "gsm8k")
    assert (gsm8k.prompt, gsm8k.answer) == ("Question: 2 and 3?\nAnswer:", "5")
    assert gsm8k.solution == ROWS["gsm8k"][0]["answer"]
    winograd = first(write(ROWS["winograd"]), "winograd")
    assert (winograd.prompts, winograd.choices) == (("The cat", "The dog"), (" purrs.", " purrs."))
    ifeval = first(write(ROWS["ifeval"]), "ifeval")
    assert ifeval.facts == {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("gsm8k", "2 + 3 is 5.\n#### 5", "#### 6"),
        ("svamp", "5", "4"),
        ("triviaqa", " Onions, I think", "Leek"),
        ("bbh", "We see that. So the answer is False.", "So the answer is True."),
        ("ifeval", "Words only.", "Words, too."),
    ],
)
def test_what_is_written_is_graded(write, kind, right, wrong):
    task = read(write([ROWS[kind][0]]), kind)
    assert task.grade is not None
    assert [task.grade(task.items[0], text).score for text in (right, wrong)] == [1, 0]


def test_big_bench_hard_with_letters_and_worked_examples(write, tmp_path):
    path = write(
        [json.dumps({"canary": "no", "examples": [{"input": "Which?", "target": "(B)"}]})], "dates.json"
    )
    (tmp_path / "cot").mkdir()
    (tmp_path / "cot" / "dates.txt").write_text(
        "canary\n-----\nPick.\n\nQ: a\nA: Let's think step by step.\nb\n"
    )
    task = read(path, "bbh", examples=tmp_path / "cot")
    assert task.items[0].prompt == (
        "Pick.\n\nQ: a\nA: Let's think step by step.\nb\n\nQ: Which?\nA: Let's think step by step.\n"
    )
    assert [task.grade(task.items[0], f"So the answer is ({x}).").score for x in "BA"] == [1, 0]


def test_questions_about_one_passage_are_a_cluster(write):
    rows = [
        {"question": q, "passage": p, "answer": True}
        for q, p in [("a", "One."), ("b", "One."), ("c", "Two.")]
    ]
    one, same, two = read(write(rows), "boolq").items
    assert one.cluster == same.cluster != two.cluster


def test_questions_without_a_passage_are_on_their_own(write):
    queries = ["Passage: One.\nQuestion: a?", "Passage: One.\nQuestion: b?", "a?", "b?"]
    rows = [{"query": query, "choices": ["no", "yes"], "gold": 1} for query in queries]
    clusters = [item.cluster for item in read(write(rows), "boolq").items]
    assert clusters[0] == clusters[1] != "" and clusters[2:] == ["", ""]


def test_blimp_by_paradigm(write):
    rows = [
        {"sentence_good": f"{u} is", "sentence_bad": f"{u} are", "UID": u} for u in ("one", "two", "three")
    ]
    path = write(rows)
    assert [i.facts["paradigm"] for i in read(path, "blimp", paradigms=("two", "one")).items] == [
        "one",
        "two",
    ]
    with pytest.raises(InputError, match="no paradigm 'thre'; did you mean three"):
        read(path, "blimp", paradigms=("thre",))


def test_piqa_labels_beside_the_rows(write, tmp_path):
    path = write([{"goal": "Why?", "sol1": "red", "sol2": "blue"}], "valid.jsonl")
    with pytest.raises(InputError, match="label: missing"):
        read(path, "piqa")
    (tmp_path / "valid-labels.lst").write_text("1\n")
    assert first(path, "piqa").gold == 1
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    with pytest.raises(InputError, match="2 labels for 1 rows"):
        read(path, "piqa")


# --- a person's own rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "ask", "scored"),
    [
        ({"prompt": "Sky is", "choices": ["red", "blue"], "gold": 1}, "choice", (" red", " blue")),
        ({"prompt": "Sky is ", "choices": ["red", "blue"], "gold": 1}, "choice", ("red", "blue")),
        ({"query": "Sky is", "choices": [" red", "\nblue"], "gold": 1}, "choice", (" red", "\nblue")),
        ({"prompt": "2+2=", "continuation": "4"}, "continuation", " 4"),
        ({"prompt": "2+2=", "answer": 4.0}, "generate", "4"),
        ({"text": "Some words."}, "text", "Some words."),
    ],
)
def test_own_rows(write, row, ask, scored):
    task = read(write([row]), "rows")
    assert task.ask == ask
    assert (task.items[0].choices or task.items[0].answer) == scored


def test_own_rows_keep_id_and_cluster(write):
    item = first(write([{"id": 7, "cluster": "p", "prompt": "a", "answer": "b", "answers": ["c"]}]), "rows")
    assert (item.id, item.cluster, item.answers) == ("7", "p", ("c",))


# --- files --------------------------------------------------------------------------------------------------


def test_the_same_rows_in_every_kind_of_file(write, tmp_path):
    rows = [{"question": f'{n}, and "more"\nof it?', "answer": f"It is\n#### {n}"} for n in range(3)]
    for delimiter, name in ((",", "a.csv"), ("\t", "a.tsv")):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    write([json.dumps(rows)], "a.json")
    write([json.dumps({"version": 1, "data": rows})], "nested.json")
    write(rows, "lines.json")
    write(rows, "a.jsonl")
    write(rows, "b.jsonl.gz")
    write([json.dumps(rows)], "b.json.gz")
    names = ["a.csv", "a.tsv", "a.json", "nested.json", "lines.json", "a.jsonl", "b.jsonl.gz", "b.json.gz"]
    read_rows = [[(i.prompt, i.solution) for i in read(tmp_path / name, "gsm8k").items] for name in names]
    assert all(items == read_rows[0] for items in read_rows)
    assert read_rows[0] == [(f"Question: {r['question']}\nAnswer:", r["answer"]) for r in rows]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([ROWS["arc"][0]]), tmp_path / "a.parquet")
    assert first(tmp_path / "a.parquet", "arc").choices == (" red", " blue")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"damaged or cut short .parquet"):
        read(tmp_path / "b.parquet", "arc")


def test_a_folder_is_read_file_by_file_and_mmlu_knows_its_subjects(tmp_path):
    for subject in ("world_history", "astronomy"):
        rows = [[f"{subject} {n}?", "a", "b", "c", "d", "BD"[n]] for n in range(2)]
        with open(tmp_path / f"{subject}_test.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    task = read(tmp_path, "mmlu")
    assert [i.facts["subject"] for i in task.items] == ["astronomy"] * 2 + ["world history"] * 2
    assert [i.gold for i in task.items] == [1, 3, 1, 3]


def test_a_data_set_laid_out_as_on_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "arc").mkdir()
    (tmp_path / "arc" / "test.jsonl").write_text(json.dumps(ROWS["arc"][0]) + "\n")
    task = read_task(Wanted("arc", Place(dataset=str(tmp_path / "arc"), split="test"))).task
    assert (task.items[0].choices, task.items[0].gold) == ((" red", " blue"), 1)
    with pytest.raises(InputError, match="could not be loaded"):
        read_task(Wanted("arc", Place(dataset=str(tmp_path / "arc"), split="nothing")))


# --- examples and limits ------------------------------------------------------------------------------------


def sums(low, high):
    return [{"question": f"{n} and 1?", "answer": f"It is\n#### {n + 1}"} for n in range(low, high)]


def test_shots_are_the_first_examples_with_their_whole_answers(write):
    task = read(write(sums(0, 2)), "gsm8k", examples=write(sums(5, 9), "train.jsonl"), shots=2)
    assert task.items[1].prompt == (
        "Question: 5 and 1?\nAnswer: It is\n#### 6\n\nQuestion: 6 and 1?\nAnswer: It is\n#### 7\n\n"
        "Question: 1 and 1?\nAnswer:"
    )


def test_shots_of_the_same_subject(write):
    def rows(word, subjects):
        return [
            {"question": f"{word} {s}?", "subject": s, "choices": ["x", "y"], "answer": 1} for s in subjects
        ]

    examples = write(rows("old", ["art", "law"]), "dev.jsonl")
    law, art = read(write(rows("new", ["law", "art"])), "mmlu", examples=examples, shots=1).items
    assert law.prompt.endswith(
        "about law.\n\nold law?\nA. x\nB. y\nAnswer: B\n\nnew law?\nA. x\nB. y\nAnswer:"
    )
    assert "old art?" in art.prompt
    with pytest.raises(InputError, match="1 examples about law; 2 shots"):
        read(write(rows("new", ["law", "art"])), "mmlu", examples=examples, shots=2)


def test_examples_may_not_be_in_the_exam(write):
    with pytest.raises(
        InputError, match=r"splits overlap.*'train:1' of examples asks the same as 'some:2' of items"
    ):
        read(write(sums(0, 3)), "gsm8k", examples=write(sums(1, 2), "train.jsonl"), shots=1)


def test_a_limit_is_even_and_stable(write):
    path = write(sums(0, 100))
    ids = [int(item.answer) for item in read(path, "gsm8k", limit=10).items]
    assert ids == [int(item.answer) for item in read(path, "gsm8k", limit=10).items]
    assert [(n - 1) // 10 for n in ids] == list(range(10))
    assert ids != [int(item.answer) for item in read(path, "gsm8k", limit=10, seed=1).items]
    assert len(read(path, "gsm8k", limit=1000).items) == 100


# --- bad input ----------------------------------------------------------------------------------------------

BAD = {
    "empty": ([], "is empty; at least one row is needed"),
    "blank lines": (["", " "], "is empty"),
    "missing field": (
        [*sums(0, 2), {"question": "?"}],
        "1 of 3 rows.*line 3: answer: missing; the row has question",
    ),
    "missing fields": (
        [{"question": str(n)} for n in range(9)],
        "9 of 9 rows.*lines 1, 2, 3, 4, 5 and 4 more: answer",
    ),
    "broken JSON": ([sums(0, 1)[0], '{"question": '], "1 of 2 rows.*line 2: not valid JSON"),
    "no object": ([*sums(0, 1), "[1, 2]"], r"line 2: \[1, 2\] is not an object"),
    "no number": ([{"question": "a", "answer": "b"}], "answer: no number after '####'"),
    "not a text": ([{"question": 3, "answer": "#### 1"}], "question: 3 is not a text"),
    "duplicate": ([*sums(0, 2), *sums(0, 1)], "1 of 3 items repeat an earlier one: line 3 asks what 1 asks"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_line_field_and_rule(write, case):
    rows, message = BAD[case]
    path = write(rows)
    with pytest.raises(InputError, match=f"(?s){path.name}.*{message}"):
        read(path, "gsm8k")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"query": "a", "choices": ["b", "c"], "gold": 2},
            "gold: 2 is not one of the choices, which are 0 to 1",
        ),
        ({"query": "a", "choices": ["b", "c"], "gold": -1}, "gold: -1 is not"),
        ({"query": "a", "choices": ["b", "c"], "gold": True}, "gold: True is not"),
        ({"query": "a", "choices": ["b"], "gold": 0}, "1 choices; to choose"),
        ({"query": "a", "choices": "bc", "gold": 0}, "choices: 'bc' is not a list of texts"),
        (
            {"question": "a", "choices": LABELLED, "answerKey": "C"},
            "answerKey: 'C' is not one of the labels A, B",
        ),
        ({"question": "a", "choices": LABELLED}, "answerKey: missing"),
    ],
)
def test_bad_choices(write, row, message):
    with pytest.raises(InputError, match=message):
        read(write([row]), "arc")


def test_several_reasons_are_told_at_once(write):
    rows = [{"question": "a"}, "{", {"answer": "#### 1"}, {"question": "b"}]
    with pytest.raises(InputError) as told:
        read(write(rows), "gsm8k")
    assert [line.split(":")[0].strip() for line in str(told.value).splitlines()[1:]] == [
        "lines 1, 4",
        "line 2",
        "line 3",
    ]


def test_bad_tables(write):
    with pytest.raises(InputError, match=r"line 2: 1 columns where 2 belong \(question, answer\)"):
        read(write(["question,answer", "a"], "a.csv"), "gsm8k")
    with pytest.raises(InputError, match="Incorrect Answers: missing; the row has Question, Best Answer"):
        read(write(["Question,Best Answer", "a,b"], "a.csv"), "truthfulqa")
    with pytest.raises(InputError, match="2 columns where 6 belong"):
        read(write(["a,b"], "a.csv"), "mmlu")
    with pytest.raises(InputError, match="is empty"):
        read(write(["question,answer"], "a.csv"), "gsm8k")


def test_files_that_cannot_be_read(tmp_path, write):
    write([], "a.jsonl")
    with pytest.raises(InputError, match=r"no such file or folder; .* holds a.jsonl"):
        read(tmp_path / "b.jsonl", "arc")
    with pytest.raises(InputError, match=r"\.txt is not read; use .jsonl"):
        read(write(["x"], "a.txt"), "arc")
    (tmp_path / "bad.jsonl").write_bytes(b'{"a": 1}\n\xff')
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        read(tmp_path / "bad.jsonl", "arc")
    whole = write(sums(0, 50), "cut.jsonl.gz")
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"damaged or cut short .gz"):
        read(whole, "gsm8k")
    with pytest.raises(InputError, match="not valid JSON: Expecting"):
        read(write(["[{]"], "a.json"), "arc")


def test_ids_name_one_item(write):
    rows = [{"id": "x", "prompt": str(n), "answer": "b"} for n in range(2)]
    with pytest.raises(InputError, match="lines 1, 2 share the id 'x'"):
        read(write(rows), "rows")


def test_a_public_file_may_repeat_itself_a_little(write, capsys):
    """The repeat stays and is named, and the two count as one passage."""
    task = read(write([*sums(0, 200), *sums(7, 8)]), "gsm8k")
    assert len(task.items) == 201
    assert task.items[7].cluster == task.items[200].cluster == "some:8"
    assert task.items[8].cluster == ""
    assert "line 201 asks what 8 asks" in capsys.readouterr().err
    own = [{"prompt": str(n), "answer": "b"} for n in [*range(200), 7]]
    with pytest.raises(InputError, match="line 201 asks what 8 asks; take them out"):
        read(write(own), "rows")


@pytest.mark.parametrize("kind", ROWS)
def test_no_value_of_any_field_is_met_with_a_crash(write, kind):
    odd = [
        None,
        3,
        -1,
        1.5,
        True,
        "",
        " ",
        "x",
        [],
        [1],
        ["a", "b"],
        [["a"]],
        [{}],
        {},
        {"text": 1},
        {"a": "b"},
    ]
    for row in ROWS[kind]:
        changed = [{**row, field: value} for field in row for value in odd]
        for one in [*changed, *({k: v for k, v in row.items() if k != field} for field in row)]:
            with suppress(InputError):
                read(write([one]), kind)


# --- lm-eval's strings --------------------------------------------------------------------------------------

HARNESS = {  # kind: its configuration, rows as on the Hub
    "arc": ("arc/arc_easy.yaml", {"question": "Why? ", "choices": LABELLED, "answerKey": "B"}),
    "boolq": ("super_glue/boolq/default.yaml", {"question": "is it", "passage": "It is.", "label": 1}),
    "piqa": ("piqa/piqa.yaml", {"goal": "To sew", "sol1": "Thread it", "sol2": "Wait.", "label": 0}),
    "lambada": ("lambada/lambada_openai.yaml", {"text": "He was\n\nat the sea"}),
    "blimp": ("blimp/_template_yaml", {"sentence_good": "She is.", "sentence_bad": "She are.", "UID": "a"}),
    "gsm8k": ("gsm8k/gsm8k.yaml", {"question": "2 and 3?", "answer": "It is\n#### 5"}),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        {"question_stem": "Sky is", "choices": LABELLED, "answerKey": "A"},
    ),
}


@pytest.mark.parametrize("kind", HARNESS)
def test_strings_are_those_of_lm_eval(write, kind):
    lm_eval = pytest.importorskip("lm_eval")
    yaml, jinja2 = pytest.importorskip("yaml"), pytest.importorskip("jinja2")
    name, row = HARNESS[kind]
    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / name).read_text())

    def rendered(template):
        if template in row:
            return row[template]
        return jinja2.Environment(keep_trailing_newline=True).from_string(str(template)).render(**row)

    def listed(template):
        return template if isinstance(template, list) else json.loads(rendered(template).replace("'", '"'))

    task = read(write([row]), kind)
    item = task.items[0]
    assert item.prompt == rendered(config["doc_to_text"])
    match task.ask:
        case "choice":
            assert item.choices == tuple(f" {choice}" for choice in listed(config["doc_to_choice"]))
            assert item.gold == int(rendered(config["doc_to_target"]))
        case "continuation":
            assert item.answer == rendered(config["doc_to_target"])
        case "generate":
            assert item.solution == rendered(config["doc_to_target"])
            assert task.stop == tuple(config["generation_kwargs"]["until"])


# --- the real files -----------------------------------------------------------------------------------------

REAL = {
    "arc_easy.jsonl": ("arc", 2376),
    "boolq.jsonl.gz": ("boolq", 3270),
    "piqa.jsonl": ("piqa", 1838),
    "openbook_qa.jsonl": ("openbookqa", 500),
    "commonsense_qa.jsonl": ("commonsense_qa", 1221),
    "lambada_openai.jsonl.gz": ("lambada", 5153),
    "blimp_half.jsonl.gz": ("blimp", 34000),
    "mmlu_half_test.jsonl.gz": ("mmlu", 7658),
    "truthfulqa.csv": ("truthfulqa", 817),
    "winograd_wsc.jsonl": ("winograd", 273),
    "gsm8k_test.jsonl": ("gsm8k", 1319),
    "svamp.jsonl": ("svamp", 300),
    "triviaqa_sm_sub.jsonl": ("triviaqa", 3000),
    "ifeval_input_data.jsonl": ("ifeval", 541),
    "HumanEval.jsonl.gz": ("humaneval", 164),
    "bbh": ("bbh", 3615),
    "bigbench_novel_concepts.jsonl": ("rows", 32),
    "bigbench_operators.jsonl": ("rows", 210),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(data_directory, name):
    kind, count = REAL[name]
    path = data_directory / "eval" / name
    if not path.exists():
        pytest.skip(f"BEHEMOTH_DATA has no eval/{name}")
    task = read(path, kind)
    assert len(task.items) == count
    drawn = random.Random(0).sample(task.items, min(count, 50))
    if kind in ("gsm8k", "svamp", "bbh"):
        solved = [(item, item.solution or f"So the answer is {item.answer}.") for item in drawn]
        assert all(task.grade(item, text).score == 1 for item, text in solved)
