"""pass@k: the chance that at least one of k samples solves a problem (Chen et al. 2021, arXiv 2107.03374).

From n >= k samples of which c are right, 1 - C(n - c, k) / C(n, k) is unbiased, where 1 - (1 - c/n)^k is too low. The
interval is over problems, as of any mean: other problems of the kind, not other samples.
"""

from __future__ import annotations

import numpy as np

from behemoth.base.errors import InputError
from behemoth.stats.intervals import LEVEL, Interval, ratio_interval, share_interval


def pass_at_k(samples: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Each problem's estimate, (problems,), from `right` of its `samples`."""
    n, c = np.asarray(samples, np.int64), np.asarray(right, np.int64)
    if k < 1 or (n < k).any():
        raise InputError(
            f"pass@{k} from {n.min()} samples; draw at least k of each problem, and k is 1 or more"
        )
    if (c < 0).any() or (c > n).any():
        raise InputError("more right samples than samples; `right` lies between 0 and `samples`")
    # C(n - c, k) / C(n, k) as a product of factors in 0 to 1: no factorial overflows, and it is 0 where n - c < k
    misses = np.ones(np.broadcast_shapes(n.shape, c.shape))
    for i in range(k):
        misses = misses * np.maximum(n - c - i, 0) / (n - i)
    return 1 - misses


def pass_at_k_interval(samples: np.ndarray, right: np.ndarray, k: int, level: float = LEVEL) -> Interval:
    """The mean over problems with its interval: that of any mean, or where all are 0 or 1 that of a share."""
    solved = pass_at_k(samples, right, k)
    whole = bool(((solved == 0) | (solved == 1)).all())
    return (share_interval if whole else ratio_interval)(solved, np.ones(len(solved)), level)
