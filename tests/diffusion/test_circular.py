"""A ring of latent frames has no beginning: rolled noise gives rolled latents."""

import jax
import jax.numpy as jnp
import numpy as np

from walt.diffusion import circular
from walt.diffusion.conditions import Conditions, TextCondition
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.task import DiffusionTask
from walt.diffusion.text_to_latents import begin_latents, take_text_steps, text_to_latents
from walt.transformer.config import TransformerConfig

FRAMES, LENGTH, SIDE, CHANNELS = 3, 5, 2, 2
CONFIG = TransformerConfig(
    latent_shape=(FRAMES, SIDE, SIDE),
    in_channels=3 * CHANNELS + 1,
    out_channels=CHANNELS,
    width=8,
    depth=2,
    heads=2,
    spatial_window=(1, 2, 2),
    spacetime_window=(FRAMES, 2, 2),
    num_classes=3,
    canvas=True,
    scalars=("fps",),
)
DIFFUSION, SAMPLER = DiffusionConfig(), SamplerConfig(steps=3)
SHAPE = (LENGTH, SIDE, SIDE, CHANNELS)


def rolled(x, by=2):
    return jnp.roll(x, by, axis=1)


def test_a_ring_of_rolled_noise_is_the_rolled_ring():
    task = DiffusionTask(CONFIG, None, DIFFUSION)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.float32(0.2 * rng.normal(size=a.shape)), task.denoiser.abstract_params)
    labels, keys = jnp.array([0, 2]), jax.random.split(jax.random.key(0), 2)
    mask = jnp.zeros((2, LENGTH, SIDE, SIDE, 1)).at[0, 1].set(1)
    given = Conditions(known=mask * jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.float32), known_mask=mask)
    given = given._replace(scalars={"fps": jnp.asarray(rng.uniform(5, 10, (2, LENGTH)), jnp.float32)})

    @jax.jit
    def draw(draft, given):
        model, options = task.denoiser.bind(params), {"strength": 2.0, "given": given, "circular": True}
        return take_text_steps(model, labels, keys, draft, (0, 3), DIFFUSION, SAMPLER, **options).x

    draft = begin_latents(task.denoiser.bind(params), None, keys, SHAPE, DIFFUSION, SAMPLER, given=given)
    turned = given._replace(
        known=rolled(given.known), known_mask=rolled(mask), scalars={"fps": rolled(given.scalars["fps"])}
    )
    latents, moved = draw(draft, given), draw(draft._replace(x=rolled(draft.x)), turned)
    np.testing.assert_allclose(moved, rolled(latents), atol=1e-4)
    assert np.abs(moved - latents).max() > 0.1
    whole = jax.jit(
        lambda: text_to_latents(
            task.denoiser.bind(params),
            labels,
            keys,
            SHAPE,
            DIFFUSION,
            SAMPLER,
            strength=2.0,
            given=given,
            circular=True,
        )
    )()
    np.testing.assert_allclose(whole, latents, atol=1e-4)


def test_a_frame_is_the_mean_over_its_windows_but_for_first_places():
    ring = jnp.arange(LENGTH, dtype=jnp.float32)[None] + jnp.array([[0.0], [10.0]])
    seen = circular.windows(ring, FRAMES)
    np.testing.assert_array_equal(seen[:LENGTH, 0], ring[0])
    np.testing.assert_array_equal(seen[4], [4, 0, 1])
    np.testing.assert_allclose(circular.merged(seen, LENGTH), ring)
    wrong_first = seen.at[:, 0].set(1e6)
    np.testing.assert_allclose(circular.merged(wrong_first, LENGTH), ring)


def test_a_caption_is_that_of_all_windows():
    text = TextCondition(
        jnp.arange(2.0).reshape(2, 1, 1, 1),
        jnp.ones((2, 1, 1), bool),
        jnp.zeros((2, LENGTH), int),
        jnp.zeros((2, 1), bool),
    )
    seen = circular.windowed(Conditions(text=text), FRAMES, LENGTH).text
    np.testing.assert_array_equal(seen.embeddings[:, 0, 0, 0], [0] * LENGTH + [1] * LENGTH)
    assert seen.caption_index.shape == (2 * LENGTH, FRAMES)
