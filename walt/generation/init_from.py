"""Starting a training run from a bundle's weights, with a fresh optimiser: which stored array goes where, strictly by
default."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from walt.config import ConfigError
from walt.generation.bundle import Bundle, Tree, flatten, unflatten


@dataclasses.dataclass(frozen=True)
class InitRules:
    """How stored paths become parameter paths. Patterns are regular expressions searched in paths such as
    `transformer/blocks/attention/qkv/kernel`.

    Attributes:
      path: bundle, work directory or shipped name.
      rename: (pattern, replacement) pairs, applied to each stored path in order.
      skip: parameters that match keep their fresh value, and stored arrays that match (after renaming) are left out.
      widen: the model takes channels that the stored transformer does not (a canvas, self-conditioning): they start with weights of zero, and so the
        model as what it was.
      strict: every parameter must be found and every stored array of the components concerned used, unless skipped.
        Otherwise only what fits in name and shape is taken.
    """

    path: str
    rename: tuple[tuple[str, str], ...] = ()
    skip: tuple[str, ...] = ()
    widen: bool = False
    strict: bool = True

    def __post_init__(self):
        for pattern in [*(pattern for pattern, _ in self.rename), *self.skip]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from error


SHOWN_PROBLEMS = 8


def init_from(target: Tree, bundle: Bundle, rules: InitRules) -> tuple[Tree, list[str]]:
    """`target` with values of `bundle` in place of its own, and the lines that say what came from where.

    Args:
      target: fresh parameters by component, such as {"transformer": ..., "text_encoder": ...}; abstract arrays will do
        where the bundle has a value.
      bundle: its components are looked up under the same names; components that `target` lacks, after renaming, are not
        concerned.
      rules: see `InitRules`.

    Raises:
      ConfigError: strict, and something is missing, left over or of another shape; the message lists it.
    """
    wanted = flatten(target)
    stored = _renamed(bundle, rules)
    stored = {path: array for path, array in stored.items() if path.split("/")[0] in target}
    skipped = {
        path for path in wanted.keys() | stored.keys() if any(re.search(pattern, path) for pattern in rules.skip)
    }
    taken, problems = {}, []
    for path in sorted((wanted.keys() | stored.keys()) - skipped):
        if path not in stored:
            problems.append(f"{path}: not in the bundle")
        elif path not in wanted:
            problems.append(f"{path}: in the bundle, but the model has no such parameter")
        elif tuple(stored[path].shape) != tuple(wanted[path].shape):
            problems.append(
                f"{path}: {tuple(stored[path].shape)} in the bundle, {tuple(wanted[path].shape)} in the model"
            )
        else:
            taken[path] = np.asarray(stored[path], wanted[path].dtype)
    if problems and rules.strict:
        more = len(problems) - SHOWN_PROBLEMS
        raise ConfigError(
            f"init_from {rules.path}: the bundle does not fit the model (rename or skip these, or set strict=False to keep what fits):\n  "
            + "\n  ".join([*problems[:SHOWN_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])
        )
    fresh = wanted.keys() - taken.keys()
    return unflatten(wanted | taken), [
        f"init_from {rules.path}: {len(taken)} arrays ({_count(taken):,} numbers) loaded, {len(fresh)} fresh",
        *(f"  fresh: {path} (skipped)" for path in sorted(fresh & skipped)),
        *(f"  left out: {path} (skipped)" for path in sorted((stored.keys() & skipped) - wanted.keys())),
        *(f"  {problem}" for problem in problems),
    ]


def _renamed(bundle: Bundle, rules: InitRules) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for path, array in flatten({name: part.params for name, part in bundle.components.items()}).items():
        for pattern, replacement in rules.rename:
            path = re.sub(pattern, replacement, path)
        if path in renamed:
            raise ConfigError(f"init_from {rules.path}: the rename rules send two stored arrays to {path}")
        renamed[path] = array
    return renamed


def _count(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.size for array in arrays.values())
