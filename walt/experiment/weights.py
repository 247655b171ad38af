"""Weights a run starts from, and weights told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from tqdm import tqdm

from walt.generation.bundle import Component, flatten
from walt.generation.init_from import InitRules, init_from
from walt.generation.sources import open_bundle
from walt.training.task import Tree


def initial_weights(rules: InitRules, fresh: Mapping[str, Tree]) -> dict[str, Tree]:
    """Parameters by component: those of the bundle where it has them, of `fresh` where the rules skip.

    Prints what came from where. Raises `ConfigError` listing what does not fit, `BundleError` if there is no bundle.
    """
    params, report = init_from(dict(fresh), open_bundle(rules.path), rules)
    if jax.process_index() == 0:
        tqdm.write("\n".join(report))
    return params


def encoder_checksum(autoencoder: Component) -> str:
    """SHA-256 over all that latents depend on: names and float32 values of the encoder's arrays and the statistics."""
    digest = hashlib.sha256()
    for name, array in flatten({"encoder": autoencoder.params["encoder"], "extra": autoencoder.extra}).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()
