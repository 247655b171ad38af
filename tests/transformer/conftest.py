import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.transformer import Transformer, TransformerConfig

SMALL = {
    "latent_shape": (3, 4, 4),
    "in_channels": 4,
    "out_channels": 2,
    "width": 16,
    "depth": 4,
    "heads": 2,
    "spatial_window": (1, 4, 4),
    "spacetime_window": (3, 2, 2),
    "text_width": 6,
}


@pytest.fixture(scope="session")
def small_config():
    """Makes a config of a few thousand parameters, with changes."""
    return lambda **changes: TransformerConfig(**{**SMALL, **changes})


@pytest.fixture(scope="session")
def randomised():
    """Makes a module with every parameter drawn anew, so that no path is closed by its initialisation."""

    def make(build, scale=0.3):
        graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        random = np.random.default_rng(0)
        draw = lambda path, leaf: random.normal(path[-2].key == "scale", scale, leaf.shape).astype(np.float32)  # noqa: E731
        return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))

    return make


@pytest.fixture(scope="session")
def small_transformer(small_config, randomised):
    """Makes a randomised transformer."""
    return lambda **changes: randomised(lambda rngs: Transformer(small_config(**changes), rngs), 0.2)


@pytest.fixture(scope="session")
def small_inputs():
    """Makes inputs for a config: rows alternate between video (False) and image stacks (True)."""

    def make(config, batch=2, captions=None, length=5, seed=0):
        random = np.random.default_rng(seed)
        frames, height, width = config.latent_shape
        captions = captions or frames
        is_image = np.arange(batch) % 2 == 1
        inputs = {
            "latents": random.normal(size=(batch, frames, height, width, config.in_channels)),
            "timestep": random.uniform(0, 1000, size=(batch, frames)),
        }
        if config.text_width is not None:
            inputs["text_embeddings"] = random.normal(size=(batch, captions, length, config.text_width))
        inputs = {name: jnp.asarray(value, jnp.float32) for name, value in inputs.items()}
        inputs["is_image"] = jnp.asarray(is_image)
        if config.text_width is not None:
            inputs["text_mask"] = jnp.asarray(np.arange(length) < random.integers(1, length, (batch, captions, 1)))
            inputs["caption_index"] = jnp.asarray(
                np.where(is_image[:, None], np.arange(frames) % captions, 0), jnp.int32
            )
        return inputs

    return make
