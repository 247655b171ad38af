"""Sampling on eight devices: the videos of one device, whatever the mesh, the batch and who else is in it."""

import dataclasses

import jax
import numpy as np
import pytest
from meshes import compilations, every_mesh, mesh_of_eight

from walt.config import ConfigError
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.text_to_latents import Text
from walt.generation import programs
from walt.generation.canvas import held
from walt.generation.given import Given
from walt.generation.pipeline import Pipeline
from walt.generation.sampling import Sampling
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import batch_sharding, make_mesh, put, read
from walt.parallel.rules import parameter_shardings
from walt.text.config import TextEncoderConfig
from walt.transformer.config import TransformerConfig
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

from .conftest import of_frames

ROWS, LENGTH = 8, 6
SAMPLER = SamplerConfig(steps=4, guidance=3.0)
PROMPTS = ["a red ball moves left", "a blue box moves right", "the green paddle waits"]


def config_of(dtype):
    return programs.GeneratorConfig(
        TransformerConfig(
            latent_shape=(3, 8, 8),
            in_channels=8,
            out_channels=4,
            width=32,
            depth=2,
            heads=8,
            spatial_window=(1, 8, 8),
            spacetime_window=(3, 4, 4),
            text_width=16,
            dtype=dtype,
        ),
        TextEncoderConfig(vocab_size=32, width=16, depth=1, heads=2, head_width=8, mlp_width=16, dtype=dtype),
        DiffusionConfig(caption_length=LENGTH),
    )


def sampled(mesh, dtype="float64"):
    config, random = config_of(dtype), np.random.default_rng(0)
    check_mesh(config.transformer, mesh.shape)
    with jax.enable_x64(dtype == "float64"), jax.set_mesh(mesh):
        model = programs.denoiser(config.transformer, config.text)
        draw = lambda leaf: random.normal(0, 0.2, leaf.shape).astype(dtype)  # noqa: E731
        params = jax.tree.map(draw, model.abstract_params)
        params = put(params, parameter_shardings(params, mesh, PARAMETER_AXES))
        tokens = (
            random.integers(0, 32, (ROWS, LENGTH)).astype(np.int32),
            np.arange(LENGTH) < random.integers(1, LENGTH, (ROWS, 1)),
        )
        tokens, rows = put((tokens, np.arange(ROWS, dtype=np.int32)), batch_sharding(mesh))
        weights = (params, {})
        prompts = Text(programs.embed(config, weights, *tokens, np.ones((ROWS, LENGTH), dtype)), tokens[1])
        keys = programs.row_keys(np.uint32(7), rows)
        latents = programs.sample_latents(config, SAMPLER, weights, prompts, keys, None, None, Given())
        assert latents.dtype == dtype
        return read(latents)


def error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def on_one_device(one_device):
    return sampled(one_device)


@every_mesh
def test_latents_are_those_of_one_device(sizes, on_one_device):
    assert error(sampled(mesh_of_eight(sizes)), on_one_device) < 1e-9


def test_in_float32_as_well(one_device):
    assert error(sampled(mesh_of_eight((2, 1, 2, 2)), "float32"), sampled(one_device, "float32")) < 1e-3


def close(ours, theirs):
    return ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).max() <= 1


def test_videos_depend_neither_on_the_devices_nor_on_the_company(tiny_bundle, one_device):
    alone = Pipeline(tiny_bundle, one_device).generate(PROMPTS, seed=5)
    for mesh in (MeshConfig(), MeshConfig(data=2, fsdp=2, context=2)):
        pipeline = Pipeline(tiny_bundle, mesh)
        assert close(pipeline.generate(PROMPTS, seed=5), alone)
        assert close(pipeline.generate(PROMPTS[0], seed=5), alone[0])  # one video on eight devices
        assert close(pipeline.generate(PROMPTS[:2], seed=5, batch_size=1), alone[:2])
    clips = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
    assert close(pipeline.reconstruct(clips), Pipeline(tiny_bundle, one_device).reconstruct(clips))


CLIP = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
BOX = np.pad(np.ones((8, 8), bool), ((0, 8), (8, 0)))
TASKS = {  # what is known, and at which level what is not: three kinds of programs
    "animate": lambda pipeline, seed: pipeline.animate(CLIP[0], PROMPTS[0], seed=seed),
    "extend": lambda pipeline, seed: pipeline.extend(CLIP, PROMPTS[1], 0.6, "both", seed=seed),
    "inpaint": lambda pipeline, seed: pipeline.inpaint(CLIP, BOX, PROMPTS[2], seed=seed),
    "edit": lambda pipeline, seed: pipeline.edit(CLIP, PROMPTS[0], strength=0.6, seed=seed),
    "loop": lambda pipeline, seed: pipeline.loop(PROMPTS[1], num_frames=12, seed=seed),
}


def several(pipeline):
    """Latents of as many videos as there are devices, each with another canvas and prompt."""
    known = np.repeat(pipeline.encode(CLIP)[None], 8, axis=0)
    sheets = held(known + np.arange(8, dtype=np.float32)[:, None, None, None, None] / 8)
    sheets.mask[:, 1:] = 0
    sheets.mask[::2, :, 1:] = 0
    return pipeline.paint([PROMPTS[row % 3] for row in range(8)], sheets, Sampling(seed=5))


@pytest.mark.slow
def test_tasks_depend_on_the_devices_as_little(tiny, tiny_bundle, one_device):
    bundle = of_frames(2, tiny, tiny_bundle, in_channels=7, canvas=True)
    alone = Pipeline(bundle, one_device)
    expected, latents = {name: perform(alone, 5) for name, perform in TASKS.items()}, several(alone)
    for mesh in (MeshConfig(), MeshConfig(data=2, fsdp=2, context=2)):
        pipeline = Pipeline(bundle, mesh)
        with compilations() as compiled:
            for name, perform in TASKS.items():
                assert close(perform(pipeline, 5), expected[name]), name
                assert not close(perform(pipeline, 6), expected[name]), name
            assert error(several(pipeline), latents) < 1e-3
        # One for each kind, and one more where a batch of one video is filled up to four rows, not to the eight of `several`.
        assert compiled["sample_latents"] == (3 if pipeline.mesh.shape["context"] == 1 else 4), compiled


def test_weights_are_divided_as_in_training_and_taken_where_they_lie(tiny_bundle):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    weights = Pipeline(tiny_bundle, mesh)._generator_weights
    kernel = weights[0]["transformer"]["blocks"]["spatial"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    params = weights[0]["transformer"]
    moved = dataclasses.replace(tiny_bundle.components["transformer"], params=params)
    again = dataclasses.replace(tiny_bundle, components={**tiny_bundle.components, "transformer": moved})
    with (
        jax.transfer_guard_device_to_host("disallow_explicit"),
        jax.transfer_guard_device_to_device("disallow_explicit"),
    ):
        found = Pipeline(again, mesh)._generator_weights[0]["transformer"]
    assert found["blocks"]["spatial"]["mlp"]["up"]["kernel"].sharding == kernel.sharding


def test_every_program_is_compiled_once(tiny_bundle):
    pipeline = Pipeline(tiny_bundle, MeshConfig(data=4, fsdp=2))
    with compilations() as compiled:
        first = pipeline.generate(PROMPTS, steps=3)
    assert compiled["sample_latents"] == compiled["decode"] == compiled["row_keys"] == 1, compiled
    with compilations() as compiled:
        pipeline.generate(PROMPTS[::-1], steps=3, seed=9, guidance=4.0)
        assert np.array_equal(Pipeline(tiny_bundle, pipeline.mesh).generate(PROMPTS, steps=3), first)
    assert not compiled, compiled


def test_meshes_that_do_not_fit_are_refused(tiny_bundle):
    with pytest.raises(ConfigError, match=r"mesh\.tensor is 8, which does not divide transformer\.heads 2"):
        Pipeline(tiny_bundle, MeshConfig(tensor=8, data=1))
    with pytest.raises(ConfigError, match="does not fit 8 devices"):
        Pipeline(tiny_bundle, MeshConfig(data=3))


@pytest.mark.parametrize("text", ["data", "data=x", "rows=2", "data=2,data=4", "data=2;fsdp=4", "data=--1"])
def test_a_mesh_in_words(text):
    assert MeshConfig.parse("fsdp=4,data=1,tensor=2") == MeshConfig(data=1, fsdp=4, tensor=2)
    assert MeshConfig.parse("") == MeshConfig()
    with pytest.raises(ConfigError, match="such as fsdp=4,tensor=2"):
        MeshConfig.parse(text)
