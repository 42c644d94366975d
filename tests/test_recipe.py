"""Recipes: what is derived, that it stays, and what a mistaken one is told."""

from pathlib import Path

import pytest

from behemoth.base.errors import InputError, RecipeError
from behemoth.derive import rates_rule
from behemoth.explain import budget
from behemoth.model.config import ModelConfig
from behemoth.model.cost import count_parameters
from behemoth.recipe import ModelRecipe, Recipe, load_recipe, resolve, settings, to_toml

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
SMALL = """
name = "small"
[[data.sources]]
kind = "python"
[model]
size = "4.3M"
experts = 8
[train]
tokens = "800K"
[[students]]
size = "1.2M"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str = SMALL, *overrides: str) -> Recipe:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return write


def problems(write, text: str = SMALL, *overrides: str, **known) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(write(text, *overrides), **known)
    return caught.value.problems


@pytest.fixture(scope="module")
def recipe(save_llama3, tmp_path_factory):
    """A recipe of ours; one that begins with open weights is given some."""
    weights = save_llama3(tmp_path_factory.mktemp("weights") / "open-weights")

    def load(path: Path) -> Recipe:
        opened = "path = " in path.read_text().partition("[model]")[2].partition("[")[0]
        return load_recipe(path, [f"model.path={weights}"] if opened else [])

    return load


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_resolve(path, recipe):
    found = resolve(recipe(path))
    assert found.steps > 0 or (found.recipe.model.path and found.recipe.stages)


def test_there_are_recipes():
    assert {"quickstart", "moe-400m", "scout", "maverick", "behemoth-2t"} <= {path.stem for path in RECIPES}


def test_the_size_dial_lands_on_the_tiny_points(write):
    resolved = resolve(write())
    teacher, student = resolved.model, resolved.students[0].model
    assert (teacher.vocab_size, teacher.context_length, teacher.chunk_size) == (2048, 256, 64)
    assert (teacher.hidden_size, teacher.num_layers, teacher.num_heads, teacher.num_kv_heads) == (
        128,
        4,
        4,
        2,
    )
    assert (teacher.head_size, teacher.expert_size, teacher.dense_size, teacher.num_experts) == (
        32,
        256,
        512,
        8,
    )
    assert (student.hidden_size, student.num_layers, student.expert_size) == (64, 4, 128)
    assert count_parameters(teacher).total == 4_265_088
    assert count_parameters(teacher).active == 1_512_576
    assert count_parameters(student).total == 1_198_656
    assert (resolved.steps, resolved.rows_per_step, resolved.recipe.train.average) == (390, 8, 0.9692)


@pytest.mark.parametrize("size", ["310K", "1.2M", "4M", "10M", "50M", "400M", "1B", "8B", "70B"])
def test_a_derived_shape_stays_within_its_size(write, size):
    alone = SMALL.partition("[[students]]")[0]
    total = count_parameters(resolve(write(alone, f"model.size={size}")).model).total
    asked = load_count(size)
    assert 0.55 * asked <= total <= 1.02 * asked


def load_count(size: str) -> float:
    return float(size[:-1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[size[-1]]


def test_a_dense_model_has_no_experts(write):
    model = resolve(write(SMALL, "model.experts=0")).model
    assert model.sparse_layers == []
    assert 0.7 * 4e6 < count_parameters(model).total < 1.02 * 4e6


def test_given_values_override_rules(write):
    resolved = resolve(write(SMALL, "model.num_layers=8", "model.head_size=16", "train.learning_rate=0.5"))
    assert (resolved.model.num_layers, resolved.model.head_size) == (8, 16)
    assert resolved.recipe.train.learning_rate == 0.5
    assert "model.num_layers" not in resolved.reasons


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_complete_recipe_says_the_same(path, recipe, tmp_path):
    resolved = resolve(recipe(path))
    (tmp_path / "complete.toml").write_text(to_toml(resolved))
    assert resolve(load_recipe(tmp_path / "complete.toml")) == resolved


@pytest.mark.parametrize("vocab_size", [320, 512, 2048, 32_768])
def test_the_complete_recipe_of_any_size_says_the_same(write, tmp_path, vocab_size):
    """Also where the shapes are coarse: with 512 entries the fullest below 685K has 259K."""
    vocabulary, possible = f"tokenizer.vocab_size={vocab_size}", 0
    for exponent in range(0, 40, 2):
        size = f"model.size={round(200_000 * 10 ** (exponent / 10)):d}"
        student = f"students.0.size={round(200_000 * 10 ** (exponent / 20)):d}"
        try:
            resolved = resolve(write(SMALL, size, student, vocabulary, "train.tokens=2M"))
        except RecipeError:  # too small for the vocabulary
            continue
        (tmp_path / "complete.toml").write_text(to_toml(resolved))
        assert resolve(load_recipe(tmp_path / "complete.toml")) == resolved
        possible += 1
    assert possible >= 6


def test_a_size_that_no_shape_fills_is_written_as_it_came_out(write, tmp_path):
    alone = SMALL.partition("[[students]]")[0]
    resolved = resolve(write(alone, "model.size=685K", "tokenizer.vocab_size=512"))
    assert resolved.recipe.model.size == count_parameters(resolved.model).total < 0.4 * 685_000
    assert "685K were asked for" in resolved.reasons["model.size"]
    (tmp_path / "complete.toml").write_text(to_toml(resolved))
    assert resolve(load_recipe(tmp_path / "complete.toml")) == resolved


def test_the_average_is_written_for_students_alone(write, tmp_path):
    alone = SMALL.partition("[[students]]")[0]
    for text, overrides, written in (
        (SMALL, [], True),
        (alone, [], False),
        (alone, ["train.average=0.5"], True),
    ):
        resolved = resolve(write(text, *overrides))
        assert ("average = " in to_toml(resolved)) == written
        (tmp_path / "complete.toml").write_text(to_toml(resolved))
        assert resolve(load_recipe(tmp_path / "complete.toml")) == resolved


def test_tokens_in_all_are_those_of_whole_steps(write):
    assert "390 steps of 2,048 tokens (8 rows of 256), 799K tokens in all" in budget(resolve(write()), False)
    minutes = resolve(write(SMALL.replace('tokens = "800K"', "minutes = 3")))
    assert "in all; the recipe gives 3 min at" in budget(minutes, True)


def test_every_derived_value_has_its_reason_beside_it(write):
    resolved = resolve(write())
    text = to_toml(resolved)
    assert text.count("# derived: ") == len([s for s in settings(resolved) if s.derived]) > 40
    assert "tokens_per_step = 2048  # derived: 2 x sqrt(tokens)" in text


def test_awkward_text_survives_the_file(write, tmp_path):
    hub = 'kind = "hub"\ndataset = "a \\"b\\" \\\\ é \\u007f"'
    given = write(SMALL.replace('kind = "python"', hub))
    (tmp_path / "again.toml").write_text(to_toml(resolve(given)))
    again = load_recipe(tmp_path / "again.toml")
    assert again.data.sources[0].dataset == given.data.sources[0].dataset == 'a "b" \\ é \x7f'


def test_a_real_tokenizer_sets_the_vocabulary(write):
    resolved = resolve(write(), vocab_size=512)
    assert resolved.model.vocab_size == resolved.students[0].model.vocab_size == 512
    assert resolved.recipe.tokenizer.vocab_size == 512


def test_minutes_become_tokens_once(write):
    recipe = write(SMALL.replace('tokens = "800K"', "minutes = 3"))
    resolved = resolve(recipe, tokens_per_second=5000.0)
    assert (resolved.recipe.train.tokens, resolved.recipe.train.minutes) == (900_000, None)
    assert "measured" in resolved.reasons["train.tokens"]
    assert "guessed" in resolve(recipe).reasons["train.tokens"]


def test_without_a_budget_twenty_tokens_per_active_parameter(write):
    resolved = resolve(write(SMALL.replace('tokens = "800K"', "")))
    assert resolved.recipe.train.tokens == 20 * count_parameters(resolved.model).active


@pytest.mark.parametrize(
    ("per_step", "microbatches"), [(2048, 1), (16_384, 1), (32_768, 2), (49_152, 3), (75_776, 8)]
)
def test_a_forward_stays_within_its_tokens(write, per_step, microbatches):
    assert resolve(write(SMALL, f"train.tokens_per_step={per_step}")).train.microbatches == microbatches


def test_students_share_what_they_must(write):
    teacher, student = (resolved := resolve(write(SMALL, "model.chunk_size=64"))).model, resolved.students[0]
    assert (student.model.vocab_size, student.model.chunk_size) == (teacher.vocab_size, 64)
    assert (student.first_step, student.steps) == (195, 195)


def test_a_dense_student_of_a_sparse_teacher(write):
    assert resolve(write(SMALL, "students.0.experts=0")).students[0].model.num_experts == 0


def test_paths_start_at_the_recipes_folder(write, tmp_path):
    text = SMALL.replace('kind = "python"', 'kind = "files"\npath = "text"')
    assert write(text).data.sources[0].path == str(tmp_path / "text")


def test_model_recipe_covers_the_architecture():
    derived_elsewhere = {"vocab_size", "num_experts"}  # [tokenizer], and the dial `experts`
    assert set(ModelConfig.model_fields) - set(ModelRecipe.model_fields) == derived_elsewhere


def test_all_problems_at_once_with_the_nearest_key(write):
    text = SMALL.replace("experts = 8", "expert = 8").replace(
        'tokens = "800K"', 'tokns = 1\nkeep = 1\nwarmup = "x"'
    )
    found = "\n".join(problems(write, text))
    assert "model.expert: unknown key; did you mean experts?" in found
    assert "train.tokns: unknown key; did you mean tokens?" in found
    assert "train.keep = 1: " in found
    assert "train.warmup = 'x': " in found


def test_unknown_key_in_a_source(write):
    found = problems(write, SMALL.replace('"python"', '"files"\npath = "x"\nlicense = "MIT"'))
    assert found == ["data.sources.0.license: unknown key; did you mean licence?"]


def test_unknown_kind_of_source(write):
    assert "did you mean python" in problems(write, SMALL.replace('"python"', '"pyton"'))[0]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.minutes=3"], "tokens and minutes are both given"),
        (["train.tokens=1000"], "train.tokens = 1,000 is less than one step of 2,048"),
        (
            ["train.tokens_per_step=2000"],
            "not a multiple of train.context_length = 256; nearest: 1,792 or 2,048",
        ),
        (["train.microbatches=3"], "train.microbatches = 3 does not divide the 8 rows of a step; nearest: 2"),
        (
            ["train.context_length=512", "model.context_length=256"],
            "is longer than model.context_length = 256",
        ),
        (["model.chunk_size=512"], "model.chunk_size = 512 is longer than the context of 256; lower it"),
        (["model.size=100K"], "model.size = 100K is too small: with a vocabulary of 1,024"),
        (["model.num_heads=6", "model.num_kv_heads=4"], "the fields given fit no width"),
        (["model.hidden_size=128", "model.head_size=31"], "head_size = 31 is odd"),
        (["model.hidden_size=512"], "but the shape given has"),
        (["students.0.size=9K"], "students.0.size = 9,000 is too small"),
        (["students.0.joins_at=0.9999"], "students.0.joins_at = 0.9999 leaves the student none"),
        (["students.0.name=teacher"], "not 'teacher'"),
        (["students.0.name=small-control"], "or ends with '-control'"),
        (["name=../x"], "letters, digits, - and _"),
        (
            ["tokenizer.vocab_size=100"],
            "vocab_size = 100 is too small: 256 bytes and 12 special tokens need at least",
        ),
        (["model.hidden_size=128", "model.moe_every=9"], "moe_every = 9 is more than num_layers = 4"),
        (["students.0.context_length=64"], "is less than the teacher's 256"),
        (
            ["train.tokens_per_step=100", "train.microbatches=3"],
            "not a multiple of train.context_length = 256",
        ),
        (["train.warmup=0.7", "train.decay=0.7"], "is more than the whole run"),
        (["data.sources=[]"], "sources is empty; add a [[data.sources]] table"),
        (["model.size=lots"], "'lots' is not a count; write a whole number"),
    ],
)
def test_impossible_values_are_named_with_a_fix(write, overrides, told):
    budget = (
        SMALL.replace("[train]", "[train]\ntokens_per_step = 2048")
        if "train.tokens=1000" in overrides
        else SMALL
    )
    assert any(told in problem for problem in problems(write, budget, *overrides))


def test_problems_of_different_tables_come_together(write):
    found = problems(write, SMALL, "train.microbatches=3", "students.0.size=9K", "train.context_length=256")
    assert len(found) == 2


def test_missing_recipe_names_its_neighbours(tmp_path):
    (tmp_path / "there.toml").touch()
    with pytest.raises(InputError, match=r"no such file; there are .*there\.toml"):
        load_recipe(tmp_path / "here.toml")


def test_imported_tokenizer_gives_the_vocabulary(write, tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        '{"model": {"vocab": {"a": 0, "b": 99}}, "added_tokens": [{"id": 100}]}'
    )
    recipe = write(SMALL + '[tokenizer]\npath = "tokenizer.json"')
    assert resolve(recipe).model.vocab_size == 128


STAGES = """
[assistant]
practice = [{ kind = "suite", path = "suite.toml" }]
exam = [{ kind = "suite", path = "exam.toml" }]
[sft]
conversations = [{ kind = "rows", path = "rows.jsonl" }, { kind = "refusals", path = "bad.jsonl" }]
[rl]
[dpo]
pairs = [{ kind = "rows", path = "pairs.jsonl" }]
"""


def rates(resolved) -> dict[str, tuple]:
    specs = {name: getattr(resolved.recipe, name) for name in resolved.recipe.stages}
    return {name: (s.optimizer, s.learning_rate, s.adam_learning_rate) for name, s in specs.items()}


def test_how_fast_a_stage_learns(write, save_llama3, tmp_path):
    """Fast where the run's own small model learns as in pretraining, slower by reward, slowest by preferences."""
    own = resolve(
        write(SMALL + STAGES, "model.size=977M", "model.hidden_size=1024", "tokenizer.vocab_size=2048")
    )
    assert rates(own) == {
        "sft": ("muon", 0.014, 0.0015),
        "rl": ("adamw", 1.75e-5, 1.75e-5),
        "dpo": ("adamw", 1.5e-6, 1.5e-6),
    }
    assert own.recipe.rl.steps == 100 and own.recipe.assistant.start == "teacher"
    assert {"sft.learning_rate", "sft.optimizer", "rl.steps", "assistant.start"} <= own.reasons.keys()
    weights = save_llama3(tmp_path / "weights")
    opened = f'name = "x"\n[model]\npath = "{weights}"\n' + STAGES
    assert rates(resolve(write(opened))) == {
        "sft": ("adamw", 0.00252, 0.00252),
        "rl": ("adamw", 0.000176, 0.000176),
        "dpo": ("adamw", 1.51e-5, 1.51e-5),
    }
    large = {
        stage: rates_rule(stage, "adamw", 512, adapter=False, opened=True) for stage in ("sft", "rl", "dpo")
    }
    assert [found["learning_rate"][0] for found in large.values()] == [1e-5, 1e-6, 5e-7]
    adapted = opened.replace("[rl]", "adapter = { rank = 4 }\n[rl]\nadapter = { rank = 4 }")
    found = rates(resolve(write(adapted)))
    assert (found["sft"][:2], found["rl"][:2]) == (("adamw", 2e-4), ("adamw", 2e-5))
    own = resolve(
        write(SMALL + STAGES.replace("[rl]", "adapter = { rank = 4 }\n[rl]\nsteps = 7\nlearning_rate = 3.0"))
    )
    assert (own.recipe.sft.optimizer, own.recipe.rl.learning_rate, own.recipe.rl.steps) == ("adamw", 3.0, 7)


def test_a_student_that_is_post_trained_learns_at_its_own_width(write):
    shaped = SMALL.replace('size = "1.2M"', "hidden_size = 16\nhead_size = 8")
    found = resolve(write(shaped + STAGES.replace("[assistant]", '[assistant]\nstart = "student"')))
    assert rates(found)["sft"] == ("muon", 0.014, 0.024)


def test_the_complete_recipe_of_open_weights_says_the_same(write, save_llama3, tmp_path):
    weights = save_llama3(tmp_path / "weights")
    resolved = resolve(write(f'name = "x"\n[model]\npath = "{weights}"\n' + STAGES))
    assert (resolved.steps, resolved.students, resolved.recipe.model.path) == (0, (), str(weights))
    text = to_toml(resolved)
    assert "tokens_per_step" not in text and "[[sft.conversations]]" in text
    (tmp_path / "complete.toml").write_text(text)
    assert resolve(load_recipe(tmp_path / "complete.toml")) == resolved
    assert any(
        "longer than model.context_length" in p for p in problems(write, text, "train.context_length=999")
    )


def test_paths_of_post_training_start_at_the_recipes_folder(write, tmp_path):
    found = write(SMALL + STAGES)
    entries = [*found.assistant.practice, *found.assistant.exam, *found.sft.conversations, *found.dpo.pairs]
    names = ["suite.toml", "exam.toml", "rows.jsonl", "bad.jsonl", "pairs.jsonl"]
    assert [entry.path for entry in entries] == [str(tmp_path / name) for name in names]
