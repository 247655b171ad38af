"""The pipeline on a tiny model of the real classes."""

import dataclasses

import jax
import numpy as np
import pytest

import walt
from walt.config import from_config_dict
from walt.generation import programs
from walt.generation.bundle import Bundle, BundleError, Component, write_bundle
from walt.generation.fit import VideoSize
from walt.generation.pipeline import GenerationError, Pipeline, load
from walt.training.module import Functional
from walt.transformer import Transformer, TransformerConfig

BALL, BOX = "a red ball moves left", "a blue box moves right"


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    return Pipeline(tiny_bundle)


@pytest.fixture(scope="module")
def ball(pipeline):
    return pipeline.generate(BALL, seed=3)


def close(a, b):
    """Equal but for rounding: another batch size sums in another order."""
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_one_prompt_gives_one_uint8_video(pipeline, ball):
    assert pipeline.video_size == VideoSize(5, 16, 16) and pipeline.fps == 12.5
    assert ball.shape == (5, 16, 16, 3) and ball.dtype == np.uint8
    assert ball.std() > 5


def test_a_seed_gives_the_same_video_again_and_another_another(pipeline, ball):
    np.testing.assert_array_equal(pipeline.generate(BALL, seed=3), ball)
    assert not close(pipeline.generate(BALL, seed=4), ball)


def test_a_prompt_does_not_depend_on_the_others_or_on_the_batch_size(pipeline, ball):
    prompts = [BALL, BOX, "the green paddle waits"]
    together = pipeline.generate(prompts, seed=3, batch_size=2)
    assert together.shape == (3, 5, 16, 16, 3)
    assert close(together[0], ball)
    assert close(pipeline.generate(prompts, seed=3, batch_size=1), together)
    assert not close(pipeline.generate([BALL, BALL], seed=3)[1], ball)


def test_every_argument_matters(pipeline, ball):
    changes = [
        {"steps": 3},
        {"solver": "dpmpp_2m"},
        {"guidance": 1.0},
        {"guidance": 5.0},
        {"negative_prompt": "the green paddle waits"},
    ]
    for change in changes:
        assert not close(pipeline.generate(BALL, seed=3, **change), ball), change
    assert not close(pipeline.generate(BOX, seed=3), ball)


def test_other_prompts_seeds_strengths_and_pipelines_compile_nothing_new(tiny_bundle, ball):
    compiled = [programs.sample_latents._cache_size(), programs.decode._cache_size()]
    pipeline = Pipeline(tiny_bundle)
    pipeline.generate(BOX, seed=1, guidance=3.5)
    pipeline.generate("the green paddle waits", num_frames=5, guidance=0.5)
    assert [programs.sample_latents._cache_size(), programs.decode._cache_size()] == compiled


def test_smaller_sizes_are_cropped_with_a_line_that_says_so(pipeline, ball, capsys):
    small = pipeline.generate(BALL, seed=3, num_frames=3, height=12, width=8)
    np.testing.assert_array_equal(small, ball[:3, 2:14, 4:12])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "3 frames of 12x8 is rounded up to 5 frames of 16x16, which is what the model makes, and cropped back to the first "
        "frames and the middle of the picture"
    ]
    assert pipeline.generate(BALL, seed=3, num_frames=1).shape == (1, 16, 16, 3)  # a still
    pipeline.generate(BALL, seed=3, num_frames=5, height=16)
    assert not capsys.readouterr().out


def test_a_long_prompt_is_cut_with_a_line_that_says_so(pipeline, capsys):
    pipeline.generate("a red ball moves left and a blue box moves right and the green paddle waits")
    assert "longer than the 16 tokens" in capsys.readouterr().out


BAD = [
    ({"prompt": 3}, "prompt must be a string"),
    ({"prompt": []}, "empty list"),
    ({"prompt": [BALL, None]}, "prompt 1 must be a string, got NoneType"),
    ({"prompt": [BALL, " "]}, "prompt 1 is empty"),
    ({"num_frames": 0}, "num_frames must be a positive integer, got 0"),
    ({"width": 16.0}, "width must be a positive integer, got 16.0"),
    ({"steps": 2000}, "steps: 2000 is out of range"),
    ({"steps": True}, "steps must be a positive integer"),
    ({"solver": "rk4"}, "solver: unknown solver 'rk4', expected one of ddim, ddpm"),
    ({"solver": "heun"}, "use 'flow_heun'"),
    ({"guidance": -1}, "guidance: -1.0 is out of range"),
    ({"guidance": float("nan")}, "guidance must be a finite number"),
    ({"guidance": "7"}, "guidance must be a finite number"),
    ({"seed": -1}, "seed must be an integer from 0"),
    ({"seed": 0.5}, "seed must be an integer from 0"),
    ({"negative_prompt": ""}, "negative_prompt is empty"),
    ({"negative_prompt": [BALL]}, "negative_prompt must be a string"),
    ({"batch_size": 0}, "batch_size must be a positive integer"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_requests(pipeline, arguments, message):
    with pytest.raises(GenerationError, match=message):
        pipeline.generate(**({"prompt": BALL} | arguments))


def test_reconstruct_any_size(pipeline, capsys):
    video = np.random.default_rng(0).integers(0, 256, (7, 10, 13, 3), np.uint8)
    result = pipeline.reconstruct(video)
    assert result.shape == video.shape and result.dtype == np.uint8
    assert "7 frames of 10x13 is rounded up to 9 frames of 16x16" in capsys.readouterr().out
    np.testing.assert_array_equal(pipeline.reconstruct(video[None])[0], result)


def test_encode_is_normalised_and_decode_is_its_border(pipeline, tiny_bundle):
    video = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8)
    latents = pipeline.encode(video)
    assert latents.shape == (2, 2, 2, 2) and latents.dtype == np.float32
    part = tiny_bundle.components["autoencoder"]
    plain = dataclasses.replace(
        part, extra={"latent_mean": np.zeros(2, np.float32), "latent_std": np.ones(2, np.float32)}
    )
    raw = Pipeline(Bundle({"autoencoder": plain})).encode(video)
    np.testing.assert_allclose(
        latents, (raw - part.extra["latent_mean"]) / part.extra["latent_std"], rtol=1e-4, atol=1e-5
    )
    assert pipeline.decode(latents[None]).shape == (1, 5, 16, 16, 3)
    with pytest.raises(ValueError, match="6 frames"):
        pipeline.encode(np.zeros((6, 16, 16, 3), np.uint8))


def test_any_leading_axes(pipeline):
    stills = np.random.default_rng(2).integers(0, 256, (2, 3, 1, 16, 16, 3), np.uint8)
    latents = pipeline.encode(stills)
    assert latents.shape == (2, 3, 1, 2, 2, 2)
    np.testing.assert_array_equal(latents, pipeline.encode(stills.reshape(6, 1, 16, 16, 3)).reshape(latents.shape))
    assert pipeline.decode(latents).shape == stills.shape


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((5, 16, 16, 3), np.float32), "uint8 array of pixels from 0 to 255, got an array of float32"),
        ([1, 2], "got list"),
        (np.zeros((5, 16, 16, 1), np.uint8), r"shape \[T, H, W, 3\]"),
        (np.zeros((0, 16, 16, 3), np.uint8), r"got \(0, 16, 16, 3\)"),
    ],
)
def test_bad_videos(pipeline, video, message):
    for method in (pipeline.reconstruct, pipeline.encode):
        with pytest.raises(GenerationError, match=message):
            method(video)


def test_an_autoencoder_alone_reconstructs_but_does_not_generate(tiny_bundle):
    pipeline = Pipeline(Bundle({"autoencoder": tiny_bundle.components["autoencoder"]}))
    assert pipeline.video_size is None and "autoencoder" in pipeline.describe()
    assert pipeline.reconstruct(np.zeros((5, 16, 16, 3), np.uint8)).shape == (5, 16, 16, 3)
    with pytest.raises(GenerationError, match="autoencoder alone"):
        pipeline.generate(BALL)


def test_from_disk_it_is_the_same_model(tiny_bundle, ball, tmp_path):
    write_bundle(tiny_bundle, tmp_path / "b")
    np.testing.assert_array_equal(walt.load(tmp_path / "b").generate(BALL, seed=3), ball)


def without(tree, name):
    return {key: value for key, value in tree.items() if key != name}


def test_parts_that_do_not_fit_are_named(tiny_bundle):
    parts = tiny_bundle.components
    transformer = parts["transformer"]

    def broken(**changes):
        return dataclasses.replace(tiny_bundle, components={**parts, **changes})

    cases = [
        (broken(transformer=Component({**transformer.config, "width": 16}, transformer.params)), "has shape"),
        (
            broken(transformer=Component({**transformer.config, "widht": 16}, transformer.params)),
            "did you mean 'width'",
        ),
        (broken(transformer=Component(transformer.config, without(transformer.params, "text"))), "null_text.* missing"),
        (dataclasses.replace(tiny_bundle, components=without(parts, "text_encoder")), "no text_encoder"),
        (dataclasses.replace(tiny_bundle, components=without(parts, "autoencoder")), "no autoencoder"),
        (dataclasses.replace(tiny_bundle, tokenizer=None), "no tokenizer"),
        (dataclasses.replace(tiny_bundle, diffusion=None), "no diffusion config"),
    ]
    for bundle, message in cases:
        with pytest.raises(BundleError, match=message):
            Pipeline(bundle)


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="neither walt"):
        load(tmp_path)
    with pytest.raises(GenerationError, match="'ema' or 'raw'"):
        load(tmp_path, weights="average")


def test_a_model_without_prompts_says_what_it_is(tiny_bundle):
    part = tiny_bundle.components["transformer"]
    channels = part.config["out_channels"]
    transformer = from_config_dict(TransformerConfig, part.config)
    frames = dataclasses.replace(
        transformer, text_width=None, canvas=True, in_channels=transformer.in_channels + channels + 1
    )
    params = Functional(lambda rngs: Transformer(frames, rngs)).init(jax.random.key(0))[0]
    components = {
        "autoencoder": tiny_bundle.components["autoencoder"],
        "transformer": Component(dataclasses.asdict(frames), params),
    }
    pipeline = Pipeline(dataclasses.replace(tiny_bundle, components=components, tokenizer=None))
    with pytest.raises(GenerationError, match="reads no prompt: give None"):
        pipeline.generate(BALL)
    diffusion = {**tiny_bundle.diffusion, "class_names": ["ball"]}
    with pytest.raises(BundleError, match="the transformer has 0 classes, the bundle names 1"):
        Pipeline(dataclasses.replace(tiny_bundle, components=components, tokenizer=None, diffusion=diffusion))
