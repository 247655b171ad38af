"""The parts of a bundle, checked against each other, and their weights placed on a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from jax.sharding import Mesh

from walt.config import ConfigError, from_config_dict
from walt.generation.bundle import Bundle, BundleError, Tree, flatten
from walt.parallel.mesh import put
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
