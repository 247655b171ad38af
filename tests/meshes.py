"""Every way to lay eight devices out over the axes of a mesh, four of them in the fast suite."""

import itertools
import logging
import re
from collections import Counter
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh

AXES = ("data", "fsdp", "context", "tensor")
FACTORISATIONS = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(sizes) == 8]
FAST = [(8, 1, 1, 1), (2, 2, 1, 2), (1, 2, 4, 1), (1, 1, 2, 4)]

every_mesh = pytest.mark.parametrize(
    "sizes", [pytest.param(sizes, marks=() if sizes in FAST else pytest.mark.slow) for sizes in FACTORISATIONS], ids=str
)


def mesh_of_eight(sizes):
    return make_mesh(MeshConfig(**dict(zip(AXES, sizes))))


@contextmanager
def compilations():
    """Counts what is compiled within, by the name of the function; programs of one operation are left out."""
    found: Counter[str] = Counter()

    class Handler(logging.Handler):
        def emit(self, record):
            if match := re.match(r"Compiling (?:jit\()?([\w.<>]+)", record.getMessage()):
                found[match[1]] += 1

    logger, handler = logging.getLogger("jax"), Handler()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)
