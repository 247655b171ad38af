"""One thread for linear algebra, where several would wait for each other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def one_blas_thread(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with BLAS held to one thread, if threadpoolctl is installed (it comes with scikit-learn).

    The matrix products of this room are many and small. On a machine that is busy otherwise (a training job beside the evaluation) the
    threads of each product wait for whichever of them has lost its core: measured on 2 loaded cores, the nearest of 1,000 clips to 64 others
    take 7 s of processor time with two threads and 1.4 s with one.
    """

    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            return function(*args, **kwargs)
        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
