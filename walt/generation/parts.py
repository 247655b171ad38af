"""The parts of a bundle, checked against each other, their weights placed on a mesh, and what tells a model from another."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh

from walt.config import ConfigError, from_config_dict
from walt.generation.bundle import Bundle, BundleError, Tree, flatten
from walt.parallel.mesh import put, read
from walt.parallel.rules import ParameterAxes, parameter_shardings
from walt.training.module import Functional

T = TypeVar("T")


def component_of(bundle: Bundle, name: str) -> Any:
    """The component; `BundleError` if there is none."""
    if name not in bundle.components:
        raise BundleError(f"the bundle holds {', '.join(bundle.components)}, but no {name}")
    return bundle.components[name]


def config_of(cls: type[T], values: Mapping[str, Any] | None, what: str) -> T:
    """A bundle's config as the dataclass that it is of; `BundleError` if it cannot be used."""
    if values is None:
        raise BundleError(f"the bundle has a transformer but no {what} config")
    try:
        return from_config_dict(cls, values)
    except ConfigError as error:
        raise BundleError(f"the bundle's {what} config cannot be used: {error}") from error


def place_weights(
    model: Functional[Any], params: Tree, extra: Tree, what: str, mesh: Mesh, axes: ParameterAxes = ()
) -> tuple[Tree, Tree]:
    """Weights where the rules of training put them on the mesh, after a check that names the first array that is missing, left
    over or of another shape. What lies there already stays, and no device ever holds more than its share."""
    expected = flatten({"params": model.abstract_params, "extra": model.abstract_extra})
    given = flatten({"params": params, "extra": extra})
    for path in sorted(expected.keys() | given.keys()):
        if path not in given:
            raise BundleError(f"{what}: the array {path} that the config calls for is missing")
        if path not in expected:
            raise BundleError(f"{what}: the array {path} is not part of a model of this config")
        if given[path].shape != expected[path].shape:
            raise BundleError(
                f"{what}: {path} has shape {given[path].shape}, the config calls for {expected[path].shape}"
            )
    return put((params, extra), parameter_shardings((model.abstract_params, model.abstract_extra), mesh, axes))


def model_checksum(configs: Sequence[Any], weights: Mapping[str, Tree], tokenizer: bytes = b"") -> str:
    """SHA-256 over what videos depend on: what configs (dataclasses) say beyond their defaults, so that an option which is added later changes
    nothing, the float32 values of all weights, and the tokenizer. Every process must call it."""
    digest = hashlib.sha256(tokenizer)
    for config in configs:
        told = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
        defaults = {each.name: each.default for each in dataclasses.fields(config)}
        digest.update(repr({name: value for name, value in told.items() if value != defaults[name]}).encode())
    for name, leaf in flatten(dict(weights)).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(read(leaf), np.float32).tobytes())
    return digest.hexdigest()
