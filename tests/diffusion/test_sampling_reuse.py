"""Sampling with passes that reuse what the step before has computed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.conditions import Conditions
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.task import DiffusionTask
from walt.diffusion.text_to_latents import text_to_latents
from walt.transformer.config import TransformerConfig

SHAPE = (3, 4, 4, 2)
TRANSFORMER = TransformerConfig(
    latent_shape=SHAPE[:3],
    in_channels=7,
    out_channels=2,
    width=8,
    depth=6,
    heads=2,
    spatial_window=(1, 4, 4),
    spacetime_window=(3, 4, 4),
    num_classes=3,
    canvas=True,
)
DIFFUSION = DiffusionConfig(class_names=("a", "b", "c"))
TASK = DiffusionTask(TRANSFORMER, None, DIFFUSION)


@pytest.fixture(scope="module")
def params():
    random, abstract = np.random.default_rng(0), TASK.denoiser.abstract_params
    return jax.tree.map(lambda leaf: jnp.float32(0.2 * random.normal(size=leaf.shape)), abstract)


@pytest.fixture(scope="module")
def given():
    """Two videos of which the first frame is known, the last frames at lower levels."""
    random, mask = np.random.default_rng(1), np.zeros((2, *SHAPE[:3], 1), np.float32)
    mask[:, 0] = 1
    known = mask * random.normal(size=(2, *SHAPE)).astype(np.float32)
    return Conditions(known=known, known_mask=mask, level=np.float32([[1, 1, 0.5], [1, 1, 1]]))


def drawn(params, sampler, rows=slice(None), **options):
    keys, labels = jax.random.split(jax.random.key(0), 2)[rows], jnp.array([0, 2])[rows]
    options = {name: jax.tree.map(lambda x: x[rows], value) for name, value in options.items()}
    run = partial(text_to_latents, shape=SHAPE, diffusion=DIFFUSION, sampler=sampler, circular=False)
    return jax.jit(lambda p, k, o: run(TASK.denoiser.bind(p), labels, k, **o))(params, keys, options)


@pytest.mark.parametrize("solver", ["ddim", "flow_heun"])
def test_without_tolerance_nothing_but_rounding_changes(solver, params, given):
    plain = SamplerConfig(steps=6, solver=solver, guidance=2.0, known_guidance=1.5)
    expected = drawn(params, plain, given=given)
    np.testing.assert_allclose(drawn(params, dataclasses.replace(plain, reuse=1e-9), given=given), expected, atol=1e-4)


def test_a_video_is_the_same_whatever_its_neighbours(params, given):
    sampler = SamplerConfig(steps=100, guidance=2.0, reuse=0.5)
    both = drawn(params, sampler, given=given)
    exact = drawn(params, dataclasses.replace(sampler, reuse=0.0), given=given)
    assert np.abs(both - exact).max() > 1e-4  # something was reused
    assert np.abs(both - exact).mean() < 0.2 * np.abs(exact).mean()
    for row in (0, 1):
        np.testing.assert_allclose(drawn(params, sampler, slice(row, row + 1), given=given)[0], both[row], atol=1e-4)


def test_a_tolerance_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"reuse: 1\.5 is out of range, expected 0 to 1"):
        SamplerConfig(reuse=1.5)
