"""Training the autoencoder: its loss by hand, gradients that arrive everywhere, calibration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.autoencoder.config import AutoencoderConfig, AutoencoderLossConfig
from walt.autoencoder.losses import reconstruction_loss
from walt.autoencoder.task import GENERATOR, AutoencoderTask, CollapseError, latent_statistics
from walt.config import to_config_dict
from walt.training.config import OptimizerConfig, TrainingConfig
from walt.training.loop import train

TINY = AutoencoderConfig(
    latent_channels=4,
    base_channels=8,
    channel_multipliers=(1, 2),
    res_blocks=1,
    mid_blocks=0,
    strides=((4, 2),),
    temporal_kernels=(1, 3),
    patchify=4,
    groups=4,
)


def test_difference_loss_sees_flicker_and_not_an_offset():
    config = AutoencoderLossConfig(mse_weight=0.0, difference_weight=2.0)
    video = jnp.zeros((1, 3, 2, 2, 3))
    assert float(reconstruction_loss(config, video + 0.4, video)[0]) == 0.0
    flicker = video.at[:, 1].add(0.2)  # 0.1 on the [0, 1] scale, up and down again
    assert float(reconstruction_loss(config, flicker, video)[0]) == pytest.approx(2.0 * 0.1, rel=1e-5)


def test_motion_weight_counts_errors_of_moving_pixels_more():
    video = jnp.zeros((1, 4, 2, 2, 3)).at[:, ::2, 0, 0].set(1.0)  # one pixel of four moves
    plain, weighted = (
        AutoencoderLossConfig(mse_weight=1.0),
        AutoencoderLossConfig(mse_weight=1.0, motion_weight=3.0),
    )
    for pixel, factor in ((0, 4.0), (1, 1.0)):
        wrong = video.at[:, :, pixel, pixel].add(0.2)
        base, metrics = reconstruction_loss(plain, wrong, video)
        loss, weighted_metrics = reconstruction_loss(weighted, wrong, video)
        assert float(loss) == pytest.approx(factor * float(base), rel=1e-5)
        assert float(metrics["psnr"]) == float(weighted_metrics["psnr"])
    still = jnp.zeros((2, 1, 2, 2, 3))
    assert float(reconstruction_loss(weighted, still + 0.2, still)[0]) == pytest.approx(0.01, rel=1e-5)


def test_frozen_encoder_and_latent_noise():
    loss = AutoencoderLossConfig(latent_noise=0.5, freeze_encoder=True)
    task = AutoencoderTask(TINY, loss, (5, 16, 16))
    params, extra = jax.jit(task.init)(jax.random.key(0))
    batch = {"video": jnp.asarray(clips()), "row": jnp.arange(4)}
    step = gradients(task)
    grads, metrics = step(params, extra, batch, jax.random.key(1))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads[GENERATOR]["encoder"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads[GENERATOR]["decoder"]))
    _, other = step(params, extra, batch, jax.random.key(2))
    assert float(other["loss"]) != float(metrics["loss"])
    evaluate = jax.jit(task.eval_step)
    evaluated = [float(evaluate(params, extra, batch, jax.random.key(k))["loss"]) for k in (1, 2)]
    assert evaluated[0] == evaluated[1]


@pytest.fixture(scope="module")
def task():
    return AutoencoderTask(TINY, AutoencoderLossConfig(), (5, 16, 16))


def clips(rows=4, seed=0):
    """Smooth moving clips, so that a tiny model can learn something in a few steps."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(0, 200, size=(rows, 1, 1, 1, 3))
    ramp = np.linspace(0, 55, 16)[None, None, None, :, None] + 8 * np.arange(5)[None, :, None, None, None]
    return np.clip(np.broadcast_to(colour + ramp, (rows, 5, 16, 16, 3)), 0, 255).astype(np.uint8)


def gradients(task):
    """(params, extra, batch, key) -> (gradients, metrics), compiled: op by op it takes minutes."""
    state = dataclasses.make_dataclass("State", ["params", "extra"])

    def run(params, extra, batch, key):
        grads, _, metrics = task.gradients(state(params, extra), batch, key)
        return grads, metrics

    return jax.jit(run)


class Clips:
    def batches(self, start_step=0):
        step = start_step
        while True:
            yield {"video": clips(seed=step), "row": np.arange(4, dtype=np.int32)}
            step += 1


def test_loss_by_hand():
    video = jnp.zeros((2, 1, 2, 2, 3))
    reconstruction = video.at[0].add(0.2)  # 0.1 on the [0, 1] scale
    loss, metrics = reconstruction_loss(AutoencoderLossConfig(mse_weight=5.0), reconstruction, video)
    assert float(loss) == pytest.approx(5 * 0.5 * 0.01, rel=1e-5)
    assert float(metrics["psnr"]) == pytest.approx((20.0 + 100.0) / 2, rel=1e-4)  # an exact clip counts as 100 dB


def test_every_parameter_has_a_gradient(task):
    params, extra = jax.jit(task.init)(jax.random.key(0))
    batch = {"video": jnp.asarray(clips()), "row": jnp.arange(4)}
    grads, metrics = gradients(task)(params, extra, batch, jax.random.key(1))
    assert float(metrics["loss"]) > 0
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.any(g)]
    assert not dead


@pytest.mark.slow
def test_training_learns_and_ends_calibrated(task, tmp_path):
    config = TrainingConfig(
        num_steps=30,
        log_every=10,
        checkpoint_every=30,
        ema_decay=0.9,
        optimizer=OptimizerConfig(name="adam", learning_rate=3e-3, warmup_steps=2, weight_decay=0.0),
    )

    def calibrate(state):
        batches = (clips(seed=i) for i in range(8))
        return dataclasses.replace(
            state, extra=latent_statistics(task.model, state.averaged_params()[GENERATOR], batches)
        )

    state = train(
        task,
        Clips(),
        config,
        tmp_path,
        resolved_config=to_config_dict(config),
        on_finish=calibrate,
        devices=jax.devices()[:1],
    )
    batch = {"video": jnp.asarray(clips(seed=100))}
    fresh, extra = jax.jit(task.init)(jax.random.key(0))
    evaluate = jax.jit(task.eval_step)
    before = evaluate(fresh, extra, batch, jax.random.key(0))
    after = evaluate(state.params, state.extra, batch, jax.random.key(0))
    assert float(after["psnr"]) > float(before["psnr"]) + 3
    encode = jax.jit(lambda video: task.model.bind(state.averaged_params()[GENERATOR], state.extra).encode(video))
    latents = np.concatenate([encode(jnp.asarray(clips(seed=i)) / 127.5 - 1.0) for i in range(8)]).reshape(-1, 4)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(latents.std(0), 1, atol=1e-2)


def test_calibration_refuses_nothing_and_collapse(task):
    params, _ = jax.jit(task.init)(jax.random.key(0))
    with pytest.raises(ValueError, match="at least one clip"):
        latent_statistics(task.model, params[GENERATOR], [])
    dead = jax.tree.map(jnp.zeros_like, params[GENERATOR])
    with pytest.raises(CollapseError, match="collapsed"):
        latent_statistics(task.model, dead, [clips()])


def test_batch_spec_and_cost(task):
    assert task.batch_spec()["video"].shape == (5, 16, 16, 3)
    cost = task.row_cost()
    assert cost.tokens == 2 * 2 * 2 and cost.flops > 1e6
