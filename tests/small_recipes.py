"""What recipes of seconds share: text in a folder, a sparse model of width 32; and the command line, called."""

import pytest

from behemoth import cli

MODEL = """
name = "small"
[[data.sources]]
kind = "files"
path = "text"
licence = "CC0-1.0"
[tokenizer]
vocab_size = 384
[model]
hidden_size = 32
num_layers = 4
num_heads = 2
num_kv_heads = 1
head_size = 16
expert_size = 32
dense_size = 64
experts = 4
"""


def call(*words, code=0) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    assert end.value.code == code
