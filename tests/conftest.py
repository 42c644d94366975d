"""What every test may lean on: one thread, a tiny model's numbers, real text where somebody provides it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)


def save_llama3(directory: Path, **changes: Any) -> Path:
    """A tiny Llama 3 as somebody else would hand it out: drawn and saved by transformers, with a tokenizer of Llama
    3's kind (its expression, its special tokens, a template that puts bos, an end of text that is <|eot_id|>)."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["the model reads the text of 1981 and 2026\n"] * 9, trainer)
    bpe.add_special_tokens(list(LLAMA3_SPECIAL))
    bos, end, pad, eom, eot = (bpe.token_to_id(LLAMA3_SPECIAL[number]) for number in (0, 1, 3, 6, 7))
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "vocab_size": bpe.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "bos_token_id": bos,
        "eos_token_id": [end, eom, eot],
        "pad_token_id": pad,
        "use_cache": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }
    LlamaForCausalLM(LlamaConfig(**config | changes)).save_pretrained(directory)
    bpe.save(str(directory / "tokenizer.json"))
    named = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(named | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return directory


@pytest.fixture(name="save_llama3", scope="session")
def _save_llama3() -> Callable[..., Path]:
    """`save_llama3(directory, **changes)`, with changes to its config."""
    return save_llama3


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The folder of real text that BEHEMOTH_DATA names; tests that want it are skipped without."""
    if "BEHEMOTH_DATA" not in os.environ:
        pytest.skip("set BEHEMOTH_DATA to a folder with text to run this")
    return Path(os.environ["BEHEMOTH_DATA"])
