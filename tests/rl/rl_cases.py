"""A tokenizer, models, a task and samplers that every test of the room may share."""

from functools import cache

import torch

from behemoth.inference.engine import Engine
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.rl.rollouts import EngineSampler, Prompt, Sample, prompts_of
from behemoth.tasks.task import Grade, Item, Task
from behemoth.text.tokenizer import Tokenizer

CONTEXT = 96


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the user asks the assistant to say x; two and two are four"] * 4, 320)


def model(dtype: torch.dtype = torch.float32, **changes) -> Transformer:
    """Two layers, both sparse, in chunks shorter than the rows; the second sees the whole row."""
    settings = {
        "vocab_size": tokenizer().vocab_size,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 8,
        "dense_size": 48,
        "expert_size": 24,
        "num_experts": 4,
        "nope_every": 2,
        "chunk_size": 8,
        "temperature_floor": 8,
        "context_length": CONTEXT,
        "init_std": 0.1,
    }
    return Transformer(ModelConfig(**(settings | changes)), dtype).initialise(
        torch.Generator().manual_seed(0)
    )


def share_of_x(item: Item, output: str) -> Grade:
    """The share of what was written that is an x; "?" cannot be graded."""
    if "?" in output:
        return Grade(None, "a question is no answer")
    return Grade(output.count("x") / max(len(output), 1), answer=output)


def task(count: int = 6, name: str = "crosses") -> Task:
    items = tuple(Item(str(number), f"say x, {number}") for number in range(count))
    return Task(name, "generate", items, "exact_match", grade=share_of_x)


def prompts(count: int = 6, limit: int = 4, name: str = "crosses") -> list[Prompt]:
    return prompts_of(task(count, name), tokenizer(), limit, CONTEXT)


def sampler(of: Transformer, temperature: float = 1.0) -> EngineSampler:
    return EngineSampler(Engine(of), tokenizer(), temperature)


def sample(text: str, version: int = 0, finish="stop", logprobs=True) -> Sample:
    ids = tokenizer().encode(text) + [tokenizer().eot_id] * (finish == "stop")
    return Sample(tuple(ids), (-1.5,) * len(ids) if logprobs else None, text, finish, version)


class Scripted:
    """A sampler that says what it is told: text(prompt, number of the sample) -> text."""

    def __init__(self, text, **how):
        self.text, self.how, self.asked = text, how, []

    def sample(self, prompts, n, seed, version):
        self.asked.append([prompt.id for prompt in prompts])
        how = {"version": version} | self.how
        return [[sample(self.text(prompt, i), **how) for i in range(n)] for prompt in prompts]
