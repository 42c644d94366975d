import pytest

from behemoth.base.config import apply_overrides, load_toml
from behemoth.base.errors import InputError


def test_overrides_are_toml_values_or_text():
    data = {"train": {"keep": 2}, "students": [{"soft": 0.7}]}
    changed = apply_overrides(
        data, ["train.tokens=2M", "train.keep=3", "students.0.soft=0.5", "model.qk_norm=false", "a.b=[1, 2]"]
    )
    assert changed["train"] == {"keep": 3, "tokens": "2M"}
    assert changed["students"] == [{"soft": 0.5}]
    assert changed["model"] == {"qk_norm": False}
    assert changed["a"] == {"b": [1, 2]}
    assert data == {"train": {"keep": 2}, "students": [{"soft": 0.7}]}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tokens", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("students.4.soft=1", "4 is not one of the 1 entries"),
        ("students.first.soft=1", "first is not one of"),
        ("name.x=1", "nothing can be set inside 'n'"),
        ("name.x.y=1", "nothing can be set inside 'n'"),
    ],
)
def test_overrides_that_cannot_be(override, told):
    with pytest.raises(InputError, match=told):
        apply_overrides({"name": "n", "students": [{}]}, [override])


def test_an_injected_table_is_text():
    assert apply_overrides({}, ['name="a"\nevil=1'])["name"] == '"a"\nevil=1'


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"name = = 3", "not valid TOML.*line 1"), (b"\xff\xfe", "not text"), (None, "is a folder")],
)
def test_unreadable_files_are_named(tmp_path, content, told):
    path = tmp_path / "recipe.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        load_toml(path)
