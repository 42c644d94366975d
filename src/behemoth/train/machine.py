"""What this machine can do: where to compute, in which precision, and how fast at best.

A processor that only emulates bf16 is many times slower in it, and the flags that tell are not to be relied on, so
the choice is made by a measurement of a tenth of a second.
"""

from __future__ import annotations

import ctypes
import platform
import time

import torch

BF16_GAIN = 1.3  # bf16 has to be this much faster than fp32 in a matrix product to be worth its rounding


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matmul_flops(dtype: torch.dtype, where: torch.device, size: int | None = None) -> float:
    """The best rate of a square matrix product, in FLOP/s; the denominator of "share of peak".

    On a CPU one thread is measured and multiplied: on a busy machine several would wait for each other, and the
    measurement with them.
    """
    size = size or (512 if where.type == "cpu" else 8192)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + 0.15
    while time.perf_counter() < deadline:
        synchronise(where)
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        synchronise(where)
        best = min(best, (time.perf_counter() - began) / 4)
    torch.set_num_threads(threads)
    return 2 * size**3 / best * (threads if where.type == "cpu" else 1)


def synchronise(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize()


def choose_precision(where: torch.device) -> tuple[str, str]:
    """Answers bf16 where this machine computes in it, fp32 otherwise; and the reason."""
    if where.type == "cuda":
        real = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU computes in it") if real else ("fp32", "this GPU does not compute in bf16")
    gain = matmul_flops(torch.bfloat16, where) / matmul_flops(torch.float32, where)
    measured = f"bf16 measured {gain:.1f}x as fast as fp32 on this processor"
    return ("bf16", measured) if gain >= BF16_GAIN else ("fp32", measured)


def dtype_of(precision: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory: otherwise every large temporary is mapped, zeroed and unmapped again."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2  # <malloc.h>
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 2**26)
