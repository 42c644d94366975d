"""What every test may lean on: one thread, a tiny model's numbers, real text where somebody provides it."""

import os
from pathlib import Path

import pytest

# Before anything imports torch: two thread pools on the same cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from behemoth.model.config import ModelConfig


@pytest.fixture
def tiny_config() -> ModelConfig:
    """Four layers, the fourth without positions; four experts; rows of 32 in chunks of 16."""
    return ModelConfig(
        vocab_size=96,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        dense_size=64,
        expert_size=32,
        num_experts=4,
        chunk_size=16,
        temperature_floor=16,
        context_length=32,
        init_std=0.1,
    )


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The folder of real text that BEHEMOTH_DATA names; tests that want it are skipped without."""
    if "BEHEMOTH_DATA" not in os.environ:
        pytest.skip("set BEHEMOTH_DATA to a folder with text to run this")
    return Path(os.environ["BEHEMOTH_DATA"])
