import json

import pytest

from behemoth.base.files import read_json, write_json
from behemoth.release.evidence import seal
from behemoth.release.inputs import card_licence, inputs_of
from behemoth.release.licences import gather, licence_text, notice, problems

MIT = "MIT License\n\nPermission is hereby granted, free of charge\n"


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(tmp_path):
    """A run with one source of text, its licence kept, conversations of its own and from a file, and pairs."""
    place = tmp_path / "run"
    rows = write(tmp_path / "given" / "talks.jsonl", "{}\n")
    write(rows.parent / "LICENSE", MIT)
    recipe = f"""
        name = "run"
        [[data.sources]]
        kind = "python"
        [assistant]
        [[assistant.practice]]
        kind = "arithmetic"
        [sft]
        [[sft.conversations]]
        kind = "rows"
        path = "{rows}"
        [[sft.conversations]]
        kind = "code"
        [rl]
        [dpo]
        [[dpo.pairs]]
        kind = "graded"
    """
    write(place / "recipe.toml", recipe)
    source = {"licences": {"PSF-2.0": 574}, "origins": {"Python 3.11 standard library": 574}}
    write_json(place / "data" / "report.json", {"sources": {"python-0": source}})
    write(place / "data" / "licences" / "python-0" / "LICENSE.txt", "Python Software Foundation\n")
    talks = [
        {"id": "arithmetic/1 + 1", "source": "generated", "licence": "CC0-1.0"},
        {"id": "a.py:3:f:body", "source": "code", "licence": "PSF-2.0"},
        {"id": "talks:1", "source": "talks", "licence": "MIT"},
    ]
    write(place / "sft" / "data" / "records.jsonl", lines(*talks))
    pair = {"id": "arithmetic/1 + 1", "source": "graded arithmetic", "licence": "CC0-1.0"}
    write(place / "dpo" / "pairs.jsonl", lines(pair, pair | {"id": "arithmetic/1 + 2"}))
    (place / "rl").mkdir()
    return place


def entry(licence, texts=("a.txt",), **more):
    given = {"name": "tales", "stage": "pretrain", "licence": licence, "documents": 2, "origin": "", **more}
    return {"made_here": False, "texts": list(texts), **given}


def found(*entries, **more):
    return {"format": 1, "inputs": list(entries), "model_texts": [], **more}


# --- gathered -----------------------------------------------------------------------------------------------


def test_every_input_is_listed_with_its_licence_and_its_text(run, tmp_path):
    told = gather(run, tmp_path / "evidence")
    seen = {(each["stage"], each["name"]): each for each in told["inputs"]}
    assert list(seen) == [
        ("pretrain", "python-0"),
        ("sft", "generated"),
        ("sft", "code"),
        ("sft", "talks"),
        ("rl", "arithmetic"),
        ("dpo", "graded arithmetic"),
    ]
    assert read_json(tmp_path / "evidence" / "licences.json") == told
    assert seen["pretrain", "python-0"]["origin"] == "Python 3.11 standard library"
    assert seen["dpo", "graded arithmetic"]["documents"] == 2
    assert seen["sft", "code"]["texts"] == seen["pretrain", "python-0"]["texts"]  # it is made from that text
    (text,) = seen["sft", "talks"]["texts"]
    assert (tmp_path / "evidence" / "licences" / text).read_text() == MIT
    assert [each["made_here"] for each in told["inputs"]] == [False, True, False, False, True, True]
    assert problems(told, ["PSF-2.0", "MIT"], "Apache-2.0") == []


def test_what_only_calls_itself_generated_is_not_our_own(run, tmp_path):
    write(
        run / "sft" / "data" / "records.jsonl",
        lines({"id": "1", "source": "generated", "licence": "unknown"}),
    )
    (said,) = problems(gather(run, tmp_path / "evidence"), ["PSF-2.0"], "Apache-2.0")
    assert said.startswith("generated (sft, 1 conversation): its licence is unknown")


@pytest.mark.parametrize("name", ["1", "arithmetic/1 + 1", "sums/1 + 1"])
@pytest.mark.parametrize("source", ["generated", "behemoth", "graded arithmetic", "graded sums"])
def test_rows_of_somebody_are_not_our_own(run, tmp_path, name, source):
    """Whatever they say of themselves, where the recipe has no task that could have made them."""
    recipe = (
        (run / "recipe.toml")
        .read_text()
        .replace('kind = "arithmetic"', 'kind = "arithmetic"\nname = "adding"')
    )
    write(run / "recipe.toml", recipe)
    rows = lines({"id": name, "source": source, "licence": "CC0-1.0"})
    write(run / "sft" / "data" / "records.jsonl", rows)
    write(run / "dpo" / "pairs.jsonl", rows)
    assert [each.made_here for each in inputs_of(run) if each.stage in ("sft", "dpo")] == [False, False]
    said = problems(gather(run, tmp_path / "evidence"), ["PSF-2.0"], "Apache-2.0")
    assert len(said) == 2 and all("CC0-1.0 is not among the licences" in each for each in said)


def test_a_suites_own_problems_are_ours_and_its_files_are_not(run, tmp_path):
    """A file's task may call its source what it likes."""
    write(tmp_path / "given" / "sums.jsonl", lines({"prompt": "1 + 1", "answer": "2"}))
    suite = """
        name = "s"
        [[tasks]]
        kind = "functions"
        name = "code"
        items = 5
        [[tasks]]
        kind = "rows"
        name = "sums"
        path = "sums.jsonl"
        source = "generated"
        licence = "CC0-1.0"
    """
    write(tmp_path / "given" / "suite.toml", suite)
    recipe = (run / "recipe.toml").read_text()
    practice = f'[[assistant.practice]]\nkind = "suite"\npath = "{tmp_path}/given/suite.toml"\n'
    write(run / "recipe.toml", recipe + practice)
    rows = [{"id": f"{name}/1", "source": source, "licence": "CC0-1.0"}
            for name, source in (("code", "behemoth"), ("sums", "generated"))]  # fmt: skip
    write(run / "sft" / "data" / "records.jsonl", lines(*rows))
    ours = {(each.stage, each.name): each.made_here for each in inputs_of(run) if each.stage in ("sft", "rl")}
    assert ours == {
        ("sft", "behemoth"): True,
        ("sft", "generated"): False,
        ("rl", "arithmetic"): True,
        ("rl", "code"): True,
        ("rl", "sums"): False,
    }


def test_gathering_again_leaves_the_same_files(run, tmp_path):
    gather(run, tmp_path / "evidence")
    write(tmp_path / "evidence" / "licences" / "left-by-a-kill.txt")
    gather(run, tmp_path / "evidence")
    names = {path.name for path in (tmp_path / "evidence" / "licences").iterdir()}
    assert names == {"python-0-LICENSE.txt", "talks-LICENSE.txt"}


def test_texts_that_differ_have_names_that_no_file_system_mixes_up(run, tmp_path):
    write(run / "data" / "licences" / "python-0" / "A" / "license.txt", "another\n")
    told = gather(run, tmp_path / "evidence")
    texts = told["inputs"][0]["texts"]
    assert len({text.casefold() for text in texts}) == 2
    assert {(tmp_path / "evidence" / "licences" / text).read_text() for text in texts} == {
        "another\n",
        "Python Software Foundation\n",
    }


def test_what_is_made_from_the_text_is_under_each_of_its_licences(run, tmp_path):
    names = {"a": {"MIT OR Apache-2.0": 2}, "b": {"CC0-1.0": 1}, "c": {"unknown": 1}}
    write_json(
        run / "data" / "report.json", {"sources": {n: {"licences": each} for n, each in names.items()}}
    )
    for name in ("a", "c"):
        write(run / "licences" / name / "LICENSE", name)
    write(run / "licences" / "c" / "SPDX", "PSF-2.0")
    row = {"id": "x.py:1:f:body", "source": "code", "licence": "CC0-1.0, MIT OR Apache-2.0, unknown"}
    write(run / "sft" / "data" / "records.jsonl", lines(row))
    made = [(each.licence, len(each.texts)) for each in inputs_of(run) if each.name == "code"]
    assert made == [("MIT OR Apache-2.0", 1), ("CC0-1.0", 0), ("PSF-2.0", 1)]
    assert problems(gather(run, tmp_path / "a"), ["MIT", "CC0-1.0", "PSF-2.0"], "Apache-2.0") == []
    assert len(problems(gather(run, tmp_path / "b"), ["Apache-2.0", "CC0-1.0"], "Apache-2.0")) == 2


def test_a_file_without_a_licence_beside_it_has_no_text(run, tmp_path):
    (tmp_path / "given" / "LICENSE").unlink()
    told = gather(run, tmp_path / "evidence")
    (problem,) = problems(told, ["PSF-2.0", "MIT"], "Apache-2.0")
    assert "talks (sft, 1 conversation): the text of MIT is missing" in problem


def test_a_row_that_names_a_source_of_its_own_has_a_text_only_where_every_file_has_one(run, tmp_path):
    write(run / "sft" / "data" / "records.jsonl", lines({"id": "x1", "source": "forum", "licence": "MIT"}))
    assert [each.texts != () for each in inputs_of(run) if each.name == "forum"] == [True]
    other = write(tmp_path / "other" / "more.jsonl")
    recipe = (run / "recipe.toml").read_text()
    write(run / "recipe.toml", f'{recipe}\n[[sft.conversations]]\nkind = "rows"\npath = "{other}"\n')
    assert [each.texts for each in inputs_of(run) if each.name == "forum"] == [()]


def test_what_a_person_lays_into_the_run_says_what_the_data_does_not(run, tmp_path):
    (run / "data" / "licences" / "python-0" / "LICENSE.txt").unlink()
    report = {"sources": {"python-0": {"licences": {"unknown": 3}, "origins": {}}}}
    write_json(run / "data" / "report.json", report)
    talks = lines({"id": "talks:1", "source": "talks", "licence": "MIT"})
    write(run / "sft" / "data" / "records.jsonl", talks)
    said = problems(gather(run, tmp_path / "a"), ["MIT", "PSF-2.0"], "Apache-2.0")
    assert said == [
        "python-0 (pretrain, 3 documents): its licence is unknown; write its SPDX identifier into "
        "RUN/licences/python-0/SPDX, or leave it out"
    ]
    write(run / "licences" / "python-0" / "SPDX", "PSF-2.0\n")
    assert "text of PSF-2.0 is missing" in problems(gather(run, tmp_path / "b"), ["MIT", "PSF-2.0"], "MIT")[0]
    write(run / "licences" / "python-0" / "LICENSE", "Python\n")
    write(run / "licences" / "talks" / "SPDX", "CC0-1.0\n")  # what is known is not replaced
    told = gather(run, tmp_path / "c")
    assert problems(told, ["MIT", "PSF-2.0"], "Apache-2.0") == []
    assert [each["licence"] for each in told["inputs"]][:2] == ["PSF-2.0", "MIT"]


def test_no_path_of_this_machine_is_told(run, tmp_path):
    refusals = {"id": f"{tmp_path}/prompts.csv/1", "source": f"{tmp_path}/prompts.csv", "licence": "unknown"}
    write(run / "sft" / "data" / "records.jsonl", lines(refusals))
    told = gather(run, tmp_path / "evidence")
    assert str(tmp_path) not in json.dumps(told)
    assert "prompts.csv" in json.dumps(told)


def test_many_sources_of_one_licence_are_told_together(run, tmp_path):
    rows = [{"id": f"talks:{i}", "source": f"site {i}", "licence": "MIT"} for i in range(50)]
    write(run / "sft" / "data" / "records.jsonl", lines(*rows))
    (each,) = (each for each in inputs_of(run) if each.stage == "sft")
    assert (each.name, each.documents, len(each.texts)) == ("site 0, site 1, site 2 and 47 more", 50, 1)


# --- weights and tokenizers of somebody's -------------------------------------------------------------------


def weights_from(run, place):
    write(run / "recipe.toml", f'name = "tuned"\n[model]\npath = "{place}"\n')
    return [(each.stage, each.name, each.licence, len(each.texts)) for each in inputs_of(run)]


def test_imported_weights_have_the_licence_of_their_card(tmp_path):
    run, place = tmp_path / "run", tmp_path / "theirs"
    write(place / "README.md", "---\nlicense: llama4\ntags:\n- x\n---\n# Theirs\n")
    assert weights_from(run, place) == [("weights", "theirs", "llama4", 0)]
    write(place / "LICENSE", "Llama 4 Community License\n")
    assert weights_from(run, place) == [("weights", "theirs", "llama4", 1)]
    said = problems(gather(run, tmp_path / "evidence"), ["llama4"], "Apache-2.0")
    assert said == [
        "theirs (weights): llama4 does not let the weights out under Apache-2.0: models made from it keep its "
        "licence and its name"
    ]


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: apache-2.0", "Apache-2.0"),
        ("license: 'mit'", "MIT"),
        ("license: cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("license: other\nlicense_name: house-licence", "house-licence"),
        ("tags: [license]", "unknown"),
    ],
)
def test_the_licence_in_a_cards_metadata(tmp_path, head, licence):
    write(tmp_path / "README.md", f"---\n{head}\n---\nlicense: mit\n")
    assert card_licence(tmp_path) == licence
    assert card_licence(tmp_path / "nowhere") == "unknown"


def test_weights_of_another_run_of_ours_bring_its_inputs(run, tmp_path):
    write_json(run / "record.json", {})
    begun = weights_from(tmp_path / "second", f"{run}:dpo")
    assert begun[0] == ("pretrain of run", "python-0", "PSF-2.0", 1)
    assert ("dpo of run", "graded arithmetic", "CC0-1.0", 0) in begun
    assert begun == weights_from(tmp_path / "second", run / "sft")


def test_weights_of_a_bundle_bring_its_inputs_and_its_own_licence(run, tmp_path):
    bundle = tmp_path / "bundle"
    gather(run, bundle / "release" / "evidence")
    write(bundle / "README.md", "---\nlicense: apache-2.0\n---\n")
    write(bundle / "LICENSE", "Apache License\n")
    begun = weights_from(tmp_path / "second", bundle)
    assert begun[0][:3] == ("weights", "bundle", "Apache-2.0")
    assert begun[1] == ("pretrain of bundle", "python-0", "PSF-2.0", 1)


# --- judged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("licence", ["unknown", "", "Unknown", "NOASSERTION"])
def test_an_unknown_licence_is_a_problem_whatever_is_allowed(licence):
    assert "unknown" in problems(found(entry(licence)), [licence, "MIT"], "Apache-2.0")[0]


def test_a_licence_must_be_allowed_and_its_text_be_there():
    assert problems(found(entry("MIT")), ["MIT"], "Apache-2.0") == []
    (said,) = problems(found(entry("MIT")), ["PSF-2.0"], "Apache-2.0")
    assert (
        said
        == "tales (pretrain, 2 documents): MIT is not among the licences that the policy allows (PSF-2.0)"
    )
    assert "the text of MIT is missing" in problems(found(entry("MIT", texts=())), ["MIT"], "Apache-2.0")[0]
    assert problems(found(entry("CC0-1.0", texts=())), ["CC0-1.0"], "Apache-2.0") == []
    assert len(problems(found(entry("CC0-1.0", texts=())), ["MIT"], "Apache-2.0")) == 1


def test_of_alternatives_one_is_enough_and_of_parts_each_counts():
    assert problems(found(entry("GPL-3.0-only OR MIT")), ["MIT"], "Apache-2.0") == []
    assert len(problems(found(entry("MIT AND PSF-2.0")), ["MIT"], "Apache-2.0")) == 1
    assert problems(found(entry("MIT AND PSF-2.0")), ["MIT", "PSF-2.0"], "Apache-2.0") == []
    assert problems(found(entry("CC0-1.0 AND MIT", texts=())), ["MIT", "CC0-1.0"], "Apache-2.0") != []
    assert problems(found(entry("MIT AND unknown")), ["MIT", "unknown"], "Apache-2.0") != []


@pytest.mark.parametrize(
    ("licence", "model", "fine"),
    [
        ("CC-BY-4.0", "Apache-2.0", True),
        ("CC-BY-NC-4.0", "Apache-2.0", False),
        ("CC BY-NC 4.0", "Apache-2.0", False),
        ("CC-BY-NC-4.0", "CC-BY-NC-4.0", True),
        ("CC-BY-SA-4.0", "Apache-2.0", False),
        ("CC-BY-SA-4.0", "CC-BY-SA-4.0", True),
        ("CC-BY-SA-4.0", "CC-BY-NC-4.0", False),
        ("CC-BY-NC-SA-4.0", "CC-BY-NC-4.0", False),
        ("CC-BY-ND-4.0", "CC-BY-ND-4.0", False),
        ("CC-BY-SA-4.0", "CC-BY-SA-3.0", False),
        ("CC-BY-SA-3.0", "CC-BY-SA-4.0", True),
        ("CC-BY-SA-1.0", "CC-BY-SA-2.0", False),
        ("CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", False),
        ("CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0", True),
        ("CC-BY-SA-4.0", "GPL-3.0-only", True),
        ("CC-BY-SA-3.0", "GPL-3.0-only", False),
        ("CC-BY-SA-4.0", "GPL-2.0-only", False),
        ("cc-by-sa-4.0", "CC-BY-SA-4.0", True),
        ("GPL-2.0-only", "GPL-2.0-only", True),
        ("GPL-2.0-only", "GPL-3.0-only", False),
        ("GPL-2.0", "GPL-3.0", False),
        ("GPL-2.0-or-later", "GPL-3.0-only", True),
        ("GPL-2.0+", "GPL-3.0-or-later", True),
        ("GPL-2.0-only", "GPL-2.0-or-later", False),
        ("GPL-3.0-or-later", "GPL-2.0-only", False),
        ("GPL-3.0-only", "AGPL-3.0-only", False),
        ("ODbL-1.0", "ODbL-1.0", True),
        ("GPL-3.0-only", "Apache-2.0", False),
        ("AGPL-3.0-only", "AGPL-3.0-only", True),
        ("ODbL-1.0", "Apache-2.0", False),
        ("OpenRAIL", "Apache-2.0", False),
        ("BSD-3-Clause", "Apache-2.0", True),
        ("NCSA", "Apache-2.0", True),
        ("LicenseRef-OpenAI-terms", "Apache-2.0", False),
    ],
)
def test_rules_that_a_models_licence_contradicts(licence, model, fine):
    told = found(entry(licence), model_texts=["model-LICENSE.txt"])
    assert (problems(told, [licence], model) == []) is fine


def test_what_our_own_tasks_make_needs_nothing():
    assert problems(found(entry("CC0-1.0", texts=(), made_here=True)), ["PSF-2.0"], "Apache-2.0") == []


def test_another_licence_of_the_model_needs_its_text_from_a_person(run, tmp_path):
    told = gather(run, tmp_path / "evidence")
    (said,) = problems(told, ["PSF-2.0", "MIT"], "MIT")
    assert "RUN/licences/model/LICENSE" in said
    assert licence_text("MIT", tmp_path / "evidence") is None
    write(run / "licences" / "model" / "LICENSE", MIT)
    told = gather(run, tmp_path / "evidence")
    assert problems(told, ["PSF-2.0", "MIT"], "MIT") == []
    seal(tmp_path / "evidence")
    assert licence_text("MIT", tmp_path / "evidence") == MIT


# --- what goes along ----------------------------------------------------------------------------------------


def test_the_text_of_apache_is_our_own():
    text = licence_text("Apache-2.0")
    assert text is not None
    assert "Version 2.0, January 2004" in text
    assert licence_text("MIT") is None


def test_the_notice_names_every_input_its_licence_and_its_text(run, tmp_path):
    told = gather(run, tmp_path / "evidence")
    text = notice(told)
    for each in told["inputs"]:
        assert each["name"] in text
        assert each["licence"] in text
        assert all(name in text for name in each["texts"])
    assert "(made by behemoth)" in text
