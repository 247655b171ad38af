"""What does not fit in memory is refused before it is begun."""

import dataclasses

import jax
import numpy as np
import pytest

import walt
from walt.diffusion.text_to_latents import Text
from walt.generation import memory, programs
from walt.generation.given import Given
from walt.generation.pipeline import Pipeline
from walt.generation.request import GenerationError
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh

BALL = "a red ball moves left"


def test_the_estimate_grows_with_all_that_is_asked(tiny):
    needs = lambda shape, rows=1, branches=2, **changes: memory.estimate(  # noqa: E731
        dataclasses.replace(tiny.transformer, **changes), tiny.autoencoder, shape, rows, branches
    )
    plain = needs((2, 2, 2, 2))
    assert needs((2, 2, 2, 2), rows=3) == 3 * plain
    for more in (needs((2, 4, 2, 2)), needs((2, 2, 2, 2), width=64), needs((2, 2, 2, 2), branches=30)):
        assert more > plain


def test_what_does_not_fit_is_refused_with_the_largest_that_does(tiny, tiny_bundle, monkeypatch):
    pipeline = Pipeline(tiny_bundle)
    needed = memory.estimate(tiny.transformer, tiny.autoencoder, (2, 16, 8, 2), 8, 2)
    monkeypatch.setattr(memory, "available", lambda device: needed)
    with pytest.raises(GenerationError, match=r"256x128 needs about .* GB are free: 128x64 would fit, or a smaller"):
        pipeline.generate(BALL, height=256, width=128)
    monkeypatch.setattr(memory, "available", lambda device: 10)
    with pytest.raises(GenerationError, match="nothing of that shape fits"):
        pipeline.generate(BALL)
    memory.check_memory(tiny.transformer, tiny.autoencoder, (2, 99, 99, 2), 8, 2, None)


def test_a_ring_is_counted_with_all_its_windows(tiny_bundle, monkeypatch):
    pipeline, asked = Pipeline(tiny_bundle), []
    monkeypatch.setattr(memory, "check_memory", lambda *arguments: asked.append(arguments[2:5]))
    ring = pipeline.loop(BALL, seconds=2.0, steps=1)
    pipeline.generate(BALL, steps=1)
    (of_ring, *_, windows), (of_video, *_, branches) = asked
    assert of_ring == of_video and windows == branches * len(ring) // pipeline.time_factor > branches


@pytest.mark.parametrize(
    ("shape", "rows", "reuse"),
    [
        ((5, 32, 32, 8), 1, 0.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ((5, 16, 16, 8), 8, 0.0),
                ((5, 64, 64, 8), 1, 0.0),
                ((5, 64, 64, 8), 1, 0.1),
                ((5, 16, 48, 8), 4, 0.1),
                ((1, 64, 64, 8), 2, 0.0),
            )
        ),
    ],
)
def test_the_estimate_is_what_the_compiler_takes_or_somewhat_more(shape, rows, reuse):
    pipeline = walt.load("mini", mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
    estimate = memory.estimate(
        pipeline._generator.transformer, pipeline._autoencoder, shape, rows, branches=2, reuses=reuse > 0
    )
    config, weights = pipeline._sized(shape[1:3])
    sampler = dataclasses.replace(pipeline.sampler, guidance=0.0, reuse=reuse)
    of = jax.ShapeDtypeStruct
    length, width = pipeline._generator.diffusion.caption_length, pipeline._generator.text.width
    prompts = Text(of((rows, length, width), np.float32), of((rows, length), bool))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    told = (prompts, keys, of((), np.float32), None, Given(None, None, {}))
    latents = of((rows, *shape), np.float32)
    with jax.set_mesh(pipeline.mesh):
        sampling = programs.sample_latents.lower(config._replace(frames=shape[0]), sampler, weights, *told)
        decoding = programs.decode.lower(pipeline._autoencoder, pipeline._autoencoder_weights, latents)
        taken = [lowered.compile().memory_analysis().temp_size_in_bytes for lowered in (sampling, decoding)]
    assert 1 <= estimate / max(taken) < 4
