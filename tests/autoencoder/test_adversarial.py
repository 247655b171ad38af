"""Training against a critic: every loss by hand or by finite differences, and one forward pass for both groups."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.autoencoder.config import AdversarialConfig, AutoencoderConfig, AutoencoderLossConfig, DiscriminatorConfig
from walt.autoencoder.losses import discriminator_loss, generator_loss, lecam_regularizer, reconstruction_loss, to_unit
from walt.autoencoder.model import Autoencoder, to_float
from walt.autoencoder.task import CRITIC, DISCRIMINATOR, GENERATOR, AutoencoderTask, latent_statistics_of
from walt.config import ConfigError

CLIP = (5, 16, 16)
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
ADVERSARIAL = AdversarialConfig(discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(1, 2)))
AVERAGES = {"real": jnp.float32(0.4), "fake": jnp.float32(-0.3)}


def zero_critic(video):
    return jnp.zeros(video.shape[0])


def test_losses_of_an_undecided_critic():
    video = jnp.zeros((3, 1, 2, 2, 3))
    assert float(generator_loss(zero_critic(video))) == pytest.approx(np.log(2))
    none = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
    loss, (metrics, _) = discriminator_loss(ADVERSARIAL, zero_critic, video, video, none)
    assert float(loss) == pytest.approx(2 * np.log(2))
    assert float(metrics["doubt_real"]) == float(metrics["doubt_fake"]) == 0.5


def test_lecam_counts_what_has_moved_past_the_other_side():
    real, fake = jnp.array([1.0, -2.0]), jnp.array([0.0, 0.9])
    by_hand = np.mean([1.3**2, 0.0]) + np.mean([0.4**2, 0.0])
    assert float(lecam_regularizer(real, fake, AVERAGES)) == pytest.approx(by_hand, rel=1e-6)


def test_averages_follow_the_means_of_both_logits():
    video = jnp.stack([jnp.full((1, 2, 2, 3), value) for value in (-1.0, 1.0)])
    config = dataclasses.replace(ADVERSARIAL, lecam_decay=0.9)
    _, (_, following) = discriminator_loss(config, lambda v: v.mean(axis=(1, 2, 3, 4)), video, video * 0 + 1, AVERAGES)
    assert float(following["real"]) == pytest.approx(0.9 * 0.4 + 0.1 * 0.5)  # logits of [0, 1] pixels: 0 and 1
    assert float(following["fake"]) == pytest.approx(0.9 * -0.3 + 0.1 * 1.0)


def test_r1_is_the_squared_gradient_on_unit_pixels():
    video = jnp.zeros((2, 1, 2, 2, 3))
    linear = dataclasses.replace(ADVERSARIAL, lecam_weight=0.0, r1_weight=10.0)
    slope = jnp.arange(12.0).reshape(1, 2, 2, 3)
    loss, (metrics, _) = discriminator_loss(
        linear, lambda v: (v * slope).sum(axis=(1, 2, 3, 4)), video, video, AVERAGES
    )
    assert float(metrics["r1"]) == pytest.approx(float(jnp.square(slope).sum()), rel=1e-6)
    logit = 0.5 * float(slope.sum())
    plain = np.logaddexp(0, -logit) + np.logaddexp(0, logit)
    assert float(loss) == pytest.approx(plain + 10 * float(jnp.square(slope).sum()), rel=1e-5)


@pytest.fixture(scope="module")
def task():
    return AutoencoderTask(TINY, AutoencoderLossConfig(latent_noise=0.1, adversarial=ADVERSARIAL), CLIP)


@dataclasses.dataclass
class State:
    params: dict
    extra: dict


@pytest.fixture(scope="module")
def step(task):
    """(state, batch, key, gradients, next extra, metrics) of one step."""
    params, extra = jax.jit(task.init)(jax.random.key(0))
    batch = {
        "video": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, *CLIP, 3), np.uint8)),
        "row": jnp.arange(2),
    }
    key = jax.random.key(1)
    run = jax.jit(lambda params, extra: task.gradients(State(params, extra), batch, key))
    return State(params, extra), batch, key, *run(params, extra)


@pytest.mark.slow
def test_one_pass_gives_the_gradients_of_two(task, step):
    """The shared forward pass against each side differentiated on its own, the other's parameters held."""
    state, batch, key, gradients, _, metrics = step
    video = to_float(batch["video"])

    def generate(params):
        model = task.model.bind(params, latent_statistics_of(state.extra))
        latents = model.encode_raw(video)
        return model.decode_raw(latents + 0.1 * task._noise(latents, batch["row"], key))

    def generator(params):
        made = generate(params)
        fooled = generator_loss(task.discriminator.bind(state.params[DISCRIMINATOR])(to_unit(made)))
        return reconstruction_loss(task._loss, made, video)[0] + ADVERSARIAL.weight * fooled

    def discriminator(params):
        critic, averages = task.discriminator.bind(params), state.extra[CRITIC]["logits"]
        return discriminator_loss(ADVERSARIAL, critic, video, generate(state.params[GENERATOR]), averages)[0]

    for group, loss, name in ((GENERATOR, generator, "loss"), (DISCRIMINATOR, discriminator, "discriminator_loss")):
        value, expected = jax.jit(jax.value_and_grad(loss))(state.params[group])
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5)
        for ours, theirs in zip(jax.tree.leaves(gradients[group]), jax.tree.leaves(expected), strict=True):
            assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs) + 1e-7


def test_every_parameter_of_both_groups_has_a_gradient(step):
    gradients = step[3]
    assert set(gradients) == {GENERATOR, DISCRIMINATOR}
    dead = [
        jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if not np.any(leaf)
    ]
    assert not dead


def test_saturated_steps_are_counted_in_a_row(task):
    from walt.autoencoder.task import next_critic_record

    record, certain, unsure = task.extra(statistics())[CRITIC], {"doubt_real": 0.001, "doubt_fake": 0.002}, {}
    unsure = certain | {"doubt_fake": 0.2}
    for metrics, expected in ((certain, 1), (certain, 2), (unsure, 0), (certain, 1)):
        record = next_critic_record(record, AVERAGES, metrics)
        assert int(record["saturated_steps"]) == expected


def statistics():
    return {"latent_mean": jnp.zeros(4), "latent_std": jnp.ones(4)}


def test_a_saturated_critic_is_warned_of_with_figures(task, caplog):
    from walt.experiment.stage1 import CriticWatch

    extra = task.extra(statistics())
    watch, quiet = CriticWatch(every=1, patience=3), State({}, extra)
    assert watch(quiet, 10) == {"saturated_steps": 0.0} and not caplog.records
    record = {"logits": {"real": jnp.float32(21.5), "fake": jnp.float32(-19.0)}, "saturated_steps": jnp.int32(5)}
    with caplog.at_level(logging.WARNING):
        watch(State({}, extra | {CRITIC: record}), 400)
    assert "certain of every clip for 5 steps (average logits: 21.5 real, -19.0 reconstructed)" in caplog.text


def test_a_wrong_pixel_range_is_warned_of(caplog):
    from walt.experiment.stage1 import warn_of_range

    warn_of_range(np.full((1, 5, 8, 8, 3), 200, np.uint8))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        warn_of_range(np.ones((1, 5, 8, 8, 3), np.uint8))
    assert "pixels from 1 to 1; pixels of 0 to 255 are expected" in caplog.text


def test_floats_of_a_wrong_range_are_warned_of(caplog):
    Autoencoder.check_video(jnp.linspace(-1, 1, 192).reshape(1, 1, 8, 8, 3))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        Autoencoder.check_video(jnp.linspace(0, 1, 192).reshape(1, 1, 8, 8, 3))
    assert "this one lies in [0, 1]: was it scaled to [0, 1]?" in caplog.text


def test_evaluation_knows_no_critic(task, step):
    state, batch, *_ = step
    metrics = jax.jit(task.eval_step)(state.params, state.extra, batch, jax.random.key(0))
    assert set(metrics) == {"loss", "mse", "psnr", "ssim"}


@pytest.mark.parametrize("changes", [{"weight": -1.0}, {"lecam_decay": 1.0}])
def test_refuses(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        AdversarialConfig(**changes)
