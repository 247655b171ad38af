"""Model FLOPs of any function: its matrix products and convolutions, read from what JAX traces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def product_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs, two per multiply-add, of one run with arguments of these shapes; nothing is computed or compiled.

    Products and convolutions alone, every output position of a convolution with all of its kernel; no norms, activations or sums. A loop counts as
    often as it runs, which a `while` and a kernel do not say: `ValueError` where products are in one. Of branches the dearest counts, but of the forms of one
    function for several platforms the cheapest: the others compute something beside it.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [_flops(part) for part in _parts(equation.params)]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shared = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * shared * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel, where = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[where]
        elif name == "cond":
            total += (min if equation.params.get("branches_platforms") else max)(inner)
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name in ("while", "pallas_call") and any(inner):
            raise ValueError(f"cannot tell how often the products in a {name} run")
        else:
            total += sum(inner)
    return total


def _parts(params: dict[str, Any]) -> Iterator[Any]:
    """The functions inside an equation."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each
