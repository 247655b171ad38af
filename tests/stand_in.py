"""A network in place of I3D that takes no time and has no published name: means of a clip over a few places, and their changes."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from walt.evaluation.networks import NETWORKS, Network
from walt.evaluation.protocols import PROTOCOLS

NAME = "stand-in"
WIDTH = 24


def features(weights, clips):
    """Means over eighths of each frame's values, weighted, and their mean changes from frame to frame."""
    places = clips.reshape(*clips.shape[:2], WIDTH // 2, -1).mean(-1) * weights["scale"]
    return jnp.concatenate([places.mean(1), jnp.abs(jnp.diff(places, axis=1)).mean(1)], axis=1)


def install(monkeypatch):
    """Makes it a network, and a protocol of the same name, for clips of two frames and more."""
    network = Network(
        name="stand-in",
        features="means over places",
        side=None,
        fewest_frames=2,
        read=lambda path: {"scale": np.float32([1.0])},
        tree=lambda arrays, epsilon: {"scale": jnp.asarray(arrays["scale"])},
        apply=features,
        distance="stand_in_distance",
        kernel="stand_in_kernel_distance",
        published=lambda arrays: True,
        source="a test",
    )
    monkeypatch.setitem(NETWORKS, NAME, network)
    protocol = dataclasses.replace(PROTOCOLS["efficientnet-frames"], name=NAME, network=NAME, source="a test")
    monkeypatch.setitem(PROTOCOLS, NAME, protocol)
    return protocol
