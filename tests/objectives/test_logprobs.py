"""Log-probabilities chunk by chunk against those with every logit in memory."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from behemoth.objectives.logprobs import token_logprobs, token_logprobs_plainly

N, D, V = 700, 24, 4096  # several chunks of 256 tokens, the last one short


def problem(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    head = (torch.randn(V, D, generator=g) * 0.2).requires_grad_()
    return hidden, head, torch.randint(0, V, (N,), generator=g), torch.randn(N, generator=g)


def test_chunked_values_and_gradients_equal_the_plain_ones():
    hidden, head, targets, weights = problem()
    answers = []
    for function in (token_logprobs, token_logprobs_plainly):
        found = function(hidden, head, targets)
        gradients = torch.autograd.grad((weights * found.logp.square()).sum(), [hidden, head])
        assert not found.entropy.requires_grad
        answers.append((found.logp.detach(), found.entropy, *gradients))
    for chunked, plain in zip(*answers, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


def test_bf16_activations_with_an_fp32_head():
    hidden, head, targets, _ = problem(torch.bfloat16)
    found = token_logprobs(hidden, head, targets)
    found.logp.sum().backward()
    plain = token_logprobs_plainly(hidden.detach().float(), head.detach(), targets)
    assert found.logp.dtype == torch.float32 and (found.logp - plain.logp).abs().max() < 0.05
    assert (hidden.grad.dtype, head.grad.dtype) == (torch.bfloat16, torch.float32)


def test_a_uniform_distribution_has_the_largest_entropy():
    found = token_logprobs(torch.zeros(3, D), torch.randn(V, D), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found.entropy, torch.full((3,), V, dtype=torch.float32).log())
    torch.testing.assert_close(found.logp, -found.entropy)


@pytest.mark.parametrize("count", [0, 1])
def test_few_tokens_or_none(count):
    hidden, head, targets, _ = problem()
    found = token_logprobs(hidden[:count], head, targets[:count])
    found.logp.sum().backward()
    assert found.logp.shape == (count,) and bool(head.grad.count_nonzero()) == bool(count)


class Largest(TorchDispatchMode):
    """The most numbers that one tensor held."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in [out] if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize(("function", "tokens"), [(token_logprobs, 256), (token_logprobs_plainly, N)])
def test_only_a_chunk_of_logits_is_in_memory_forward_and_backward(function, tokens):
    hidden, head, targets, weights = problem()
    with Largest() as forward:
        logp = function(hidden, head, targets).logp
    with Largest() as backward:
        (weights * logp).sum().backward()
    assert (forward.numbers, backward.numbers) == (tokens * V, tokens * V)
