"""Stage 1 with its sharpening losses: through the real loop, stopped and gone on with, and what the perceptual distance
is given."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.autoencoder.config import (
    AdversarialConfig,
    AutoencoderConfig,
    AutoencoderLossConfig,
    DiscriminatorConfig,
    PerceptualConfig,
)
from walt.autoencoder.efficientnet import WeightsMissingError, weights_file
from walt.autoencoder.model import reconstruct, to_float
from walt.autoencoder.task import CRITIC, DISCRIMINATOR, GENERATOR, AutoencoderTask
from walt.data import records
from walt.data.loader import LoaderConfig
from walt.data.media import encode_clip
from walt.experiment import stage1
from walt.experiment.config import AutoencoderExperiment
from walt.training.checkpoint import restore_parts
from walt.training.config import OptimizerConfig, TrainingConfig

CLIP = (5, 16, 16, 3)
TINY = AutoencoderConfig(
    latent_channels=4,
    base_channels=4,
    channel_multipliers=(1,),
    res_blocks=1,
    mid_blocks=0,
    strides=(),
    temporal_kernels=(3,),
    patchify=4,
    groups=2,
)
# As few convolutions as there can be: tracing a step takes ten times as long as its steps.
CRITIC_OF_ONE_LEVEL = AdversarialConfig(discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(1,)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of 16 clips of noise, so that no two batches of a run are alike."""
    folder, rng = tmp_path_factory.mktemp("data") / "clips", np.random.default_rng(0)
    with records.new_dataset(folder) as directory:
        with records.RecordWriter(directory, "train") as writer:
            for index in range(16):
                clip = encode_clip(rng.integers(0, 256, CLIP, np.uint8))
                writer.write({"id": str(index), "captions": [], "label": "", "clip": clip, "fps": 15.0})
            splits = {"train": writer.close()}
        records.write_manifest(directory, records.Manifest("test", splits, {"clip": CLIP}, 15.0, 0, {}, {}, {}))
    return folder


def assert_equal(left, right):
    for (path, a), b in zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("perceptual", [None, PerceptualConfig(stages=(0,))], ids=["critic", "critic and features"])
def test_a_run_with_a_critic_goes_on_exactly(tmp_path, data, perceptual):
    if perceptual is not None:
        try:
            weights_file()
        except WeightsMissingError as error:
            pytest.skip(str(error))
    settings = AutoencoderExperiment(
        data=LoaderConfig(path=str(data), batch_size=4),
        autoencoder=TINY,
        loss=AutoencoderLossConfig(latent_noise=0.1, perceptual=perceptual, adversarial=CRITIC_OF_ONE_LEVEL),
        training=TrainingConfig(
            num_steps=4,
            log_every=2,
            checkpoint_every=2,
            accumulation=2,
            ema_decay=0.9,
            optimizer=OptimizerConfig(warmup_steps=1),
        ),
        calibration_clips=4,
    )

    def run(name):
        return stage1.train_autoencoder(settings, tmp_path / name, devices=jax.devices()[:1])

    straight = run("straight")
    # What is left of a run whose power fails after step 2: everything but the last checkpoint.
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    assert restore_parts(tmp_path / "resumed")[-1] == 2
    assert_equal(straight, run("resumed"))

    assert set(straight.params) == {GENERATOR, DISCRIMINATOR} and set(straight.ema) == {GENERATOR}
    fresh, _, extra, *_ = restore_parts(tmp_path / "straight", 0)
    unmoved = jax.tree.map(lambda a, b: np.array_equal(a, b), fresh, straight.params)
    assert not any(jax.tree.leaves(unmoved)), unmoved
    for side, average in straight.extra[CRITIC]["logits"].items():
        assert extra[CRITIC]["logits"][side] == 0 and average != 0


class Power:
    """A stand-in for the distance: the difference of mean squared pixels, which is another one on any other scale."""

    def __init__(self):
        self.params = {"factor": jnp.float32(3.0)}

    def __call__(self, params, a, b):
        return params["factor"] * (jnp.square(a) - jnp.square(b)).mean(axis=(1, 2, 3, 4))


def test_the_perceptual_distance_is_of_unit_pixels_and_weighs_in_the_loss():
    loss = AutoencoderLossConfig(mse_weight=0.0, perceptual=PerceptualConfig(weight=0.25))
    task = AutoencoderTask(TINY, loss, CLIP[:3], Power())
    pixels = np.random.default_rng(0).integers(0, 256, (2, *CLIP), np.uint8)
    batch, key = {"video": jnp.asarray(pixels), "row": jnp.arange(2)}, jax.random.key(1)
    state = dataclasses.make_dataclass("State", ["params", "extra"])

    @jax.jit
    def run():
        params, extra = task.init(jax.random.key(0))
        made = reconstruct(task.model.bind(params[GENERATOR], extra), to_float(batch["video"]))
        grads, _, trained = task.gradients(state(params, extra), batch, key)
        return made, grads, trained, task.eval_step(params, extra, batch, key)

    made, grads, trained, evaluated = run()
    expected = 3.0 * (np.square((made + 1) / 2).mean() - np.square(pixels / 255).mean())
    for metrics in (trained, evaluated):
        assert float(metrics["perceptual"]) == pytest.approx(expected, rel=1e-4)
        assert float(metrics["loss"]) == pytest.approx(0.25 * expected, rel=1e-4)
    # Nothing else is in the loss, so the gradients are those of the distance.
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
