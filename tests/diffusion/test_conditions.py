"""What training tells the model, and how often it does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.conditions import Conditions, draw_conditions
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.task import DiffusionTask
from walt.diffusion.text_to_latents import text_to_latents
from walt.transformer.config import TransformerConfig

FRAMES, SIDE, CHANNELS, CLASSES = 4, 4, 2, 6
EVERYTHING = TransformerConfig(
    latent_shape=(FRAMES, SIDE, SIDE),
    in_channels=4 * CHANNELS + 1,
    out_channels=CHANNELS,
    width=8,
    depth=2,
    heads=2,
    spatial_window=(1, 4, 4),
    spacetime_window=(4, 2, 2),
    num_classes=CLASSES,
    canvas=True,
    low_resolution=2,
    scalars=("fps", "motion", "low_resolution_time"),
)
DIFFUSION = DiffusionConfig(
    class_dropout=0.2, scalar_dropout=0.3, known_rate=0.5, self_conditioning_rate=0.5, low_resolution_dropout=0.25
)
TASK = DiffusionTask(EVERYTHING, None, DIFFUSION)
ROWS = 3000


def make_batch(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "latents": jnp.asarray(rng.normal(size=(rows, FRAMES, SIDE, SIDE, CHANNELS)), jnp.float32),
        "low_resolution": jnp.asarray(rng.normal(size=(rows, FRAMES, 2, 2, CHANNELS)), jnp.float32),
        "is_image": jnp.arange(rows) % 2 == 1,
        "class_label": jnp.asarray(rng.integers(0, CLASSES, (rows, FRAMES)), jnp.int32),
        "fps": jnp.full(rows, 8.0),
        "row": jnp.arange(rows, dtype=jnp.int32),
    }


@pytest.fixture(scope="module")
def batch():
    return make_batch(ROWS)


@pytest.fixture(scope="module")
def drawn(batch):
    keys = jax.random.split(jax.random.key(0), ROWS)
    found = jax.jit(lambda batch, keys: draw_conditions(EVERYTHING, DIFFUSION, TASK.schedule, batch, keys))(batch, keys)
    return jax.tree.map(np.asarray, found)


VIDEOS, IMAGES = slice(0, None, 2), slice(1, None, 2)


def test_classes_are_dropped_at_their_rate(batch, drawn):
    dropped = drawn.class_label == CLASSES
    np.testing.assert_array_equal(drawn.class_label[~dropped], np.asarray(batch["class_label"])[~dropped])
    assert dropped[VIDEOS].mean() == pytest.approx(0.2, abs=0.03)
    assert np.all(dropped[VIDEOS] == dropped[VIDEOS, :1]), "a video has its class or not"
    assert dropped[IMAGES].mean() == pytest.approx(0.2, abs=0.03)
    assert np.any(dropped[IMAGES] != dropped[IMAGES, :1]), "every image draws its own"


def test_the_first_frames_of_some_videos_are_known(batch, drawn):
    known = drawn.known_mask[:, :, 0, 0, 0]
    counts = known.sum(1)
    assert np.all(counts[IMAGES] == 0)
    shares = [np.mean(counts[VIDEOS] == count) for count in range(FRAMES)]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25, 0], atol=0.04)
    assert np.all(np.diff(known, axis=1) <= 0), "first frames first"
    np.testing.assert_array_equal(drawn.known, np.asarray(batch["latents"]) * drawn.known_mask)
    np.testing.assert_array_equal(drawn.counted(), 1 - drawn.known_mask)


def test_scalars_are_told_or_not(batch, drawn):
    fps, motion = drawn.scalars["fps"], drawn.scalars["motion"]
    assert set(fps[VIDEOS][~np.isnan(fps[VIDEOS])]) == {8.0} and np.all(np.isnan(fps[IMAGES]))
    assert np.isnan(fps[VIDEOS]).mean() == pytest.approx(0.3, abs=0.04)
    assert np.isnan(motion[VIDEOS]).mean() == pytest.approx(0.3, abs=0.04)
    assert np.nanmax(np.abs(motion[IMAGES])) == 0
    expected = np.abs(np.diff(np.asarray(batch["latents"]), axis=1)).mean((1, 2, 3, 4))[VIDEOS, None]
    told = ~np.isnan(motion[VIDEOS])
    np.testing.assert_allclose(motion[VIDEOS][told], np.broadcast_to(expected, told.shape)[told], rtol=1e-5)
    both = np.isnan(fps[VIDEOS, 0]) & np.isnan(motion[VIDEOS, 0])
    assert both.mean() == pytest.approx(0.09, abs=0.02), "each is drawn on its own"


def test_low_resolution_is_noised_to_the_time_that_is_told(batch, drawn):
    t, dropped = drawn.scalars["low_resolution_time"], drawn.scalars["low_resolution_time"] == 1
    assert dropped[VIDEOS].mean() == pytest.approx(0.25, abs=0.03) == dropped[IMAGES].mean()
    assert np.all(dropped[VIDEOS] == dropped[VIDEOS, :1]) and np.all(drawn.low_resolution[dropped] == 0)
    t = np.where(dropped, 0.15, t)
    assert t.min() >= 0 and t.max() <= 0.3 and t.mean() == pytest.approx(0.15, abs=0.01)
    clean = np.asarray(batch["low_resolution"])
    alpha = np.asarray(TASK.schedule.alpha(jnp.asarray(t)))[..., None, None, None]
    noise = (drawn.low_resolution - alpha * clean) / np.sqrt(np.maximum(1 - alpha**2, 1e-9))
    late = (t > 0.05) & ~dropped
    assert noise[late].std() == pytest.approx(1, abs=0.02)


def test_a_row_draws_from_its_own_key(batch):
    keys = jax.random.split(jax.random.key(0), 8)
    draw = jax.jit(lambda rows, keys: draw_conditions(EVERYTHING, DIFFUSION, TASK.schedule, rows, keys))
    whole = draw(jax.tree.map(lambda x: x[:8], batch), keys)
    part = draw(jax.tree.map(lambda x: x[2:6], batch), keys[2:6])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[2:6], b, rtol=1e-6), whole, part)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.float32(0.2 * rng.normal(size=a.shape)), TASK.denoiser.abstract_params)


def test_every_condition_reaches_the_prediction_and_every_parameter_learns(params):
    batch = make_batch(16)
    grads = jax.jit(jax.grad(lambda p: TASK.row_losses(p, {}, batch, jax.random.key(1)).mean()))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_known_frames_do_not_count(params):
    """The loss of a row with known frames is the mean over the others."""
    from walt.diffusion import loss

    rng = np.random.default_rng(0)
    value, x0 = (jnp.asarray(rng.normal(size=(2, FRAMES, 3)), jnp.float32) for _ in range(2))
    counted = jnp.ones((2, FRAMES, 1)).at[1, :2].set(0)
    config = DiffusionConfig(prediction="x0")
    found = loss.frame_losses(config, value, x0, x0, x0, jnp.ones(()), jnp.ones(()), counted).mean(1)
    squares = np.square(np.asarray(value - x0))
    np.testing.assert_allclose(found, [squares[0].mean(), squares[1, 2:].mean()], rtol=1e-5)


def test_sampling_is_told_classes_frames_and_scalars(params):
    """Each changes the sample; no class is what label 0 with guidance 0 gives."""
    shape, keys = (FRAMES, SIDE, SIDE, CHANNELS), jax.random.split(jax.random.key(0), 2)
    rng = np.random.default_rng(0)
    mask = jnp.zeros((2, FRAMES, SIDE, SIDE, 1)).at[:, :1].set(1)
    known = mask * jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    given = Conditions(
        known=known,
        known_mask=mask,
        low_resolution=jnp.zeros((2, FRAMES, 2, 2, CHANNELS)),
        scalars={"low_resolution_time": jnp.full((2, FRAMES), 0.1)},
    )

    def program(**options):
        denoiser, sampler = TASK.denoiser.bind(params), SamplerConfig(steps=3, **options)

        def draw(labels, given, strength):
            return text_to_latents(denoiser, labels, keys, shape, DIFFUSION, sampler, strength=strength, given=given)

        return jax.jit(draw)

    labels, run = jnp.array([0, 3]), program()
    base = run(labels, given, 2.0)
    differs = lambda other: np.abs(np.asarray(other) - base).max() > 1e-4  # noqa: E731
    assert differs(run(labels + 1, given, 2.0))
    assert differs(run(labels, given._replace(known=2 * known), 2.0))
    assert differs(run(labels, given._replace(low_resolution=given.low_resolution + 1), 2.0))
    fps = {**given.scalars, "fps": jnp.full((2, FRAMES), 24.0)}
    assert differs(run(labels, given._replace(scalars=fps), 2.0))
    assert differs(program(known_guidance=3.0)(labels, given, 2.0))
    np.testing.assert_allclose(run(labels + 2, given, 0.0), run(labels, given, 0.0), atol=1e-5)


def test_a_video_with_nothing_left_to_generate_is_refused():
    with pytest.raises(ConfigError, match="known_frames is \\(4,\\), but a video has 4 latent frames"):
        DiffusionTask(EVERYTHING, None, dataclasses.replace(DIFFUSION, known_frames=(4,)))


KNOWN = dataclasses.replace(EVERYTHING, low_resolution=None, in_channels=3 * CHANNELS + 1, scalars=(), num_classes=None)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m", "flow_euler", "flow_heun"])
def test_known_frames_are_held_at_every_step_and_returned(solver):
    """The network sees them with the noise of the time, as in training, and they come back exactly. No prompt is needed."""
    seen = []

    class Watches:
        config = KNOWN

        def __call__(self, x_t, time, previous_x0, *, is_image, conditions):
            jax.debug.callback(lambda *values: seen.append(values), x_t, time, previous_x0)
            return jnp.tanh(x_t) + conditions.known.mean()

    rng = np.random.default_rng(0)
    shape, keys = (FRAMES, SIDE, SIDE, CHANNELS), jax.random.split(jax.random.key(0), 2)
    mask = jnp.zeros((2, FRAMES, SIDE, SIDE, 1)).at[:, :1].set(1)
    known = mask * jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    given = Conditions(known=known, known_mask=mask)
    sampler = SamplerConfig(steps=4, solver=solver)
    found = text_to_latents(Watches(), None, keys, shape, DIFFUSION, sampler, given=given)
    jax.effects_barrier()
    np.testing.assert_allclose(found[:, :1], known[:, :1], atol=1e-6)
    schedule, noises = DIFFUSION.make_schedule(shape), []
    assert len(seen) == (7 if solver == "flow_heun" else 4)
    for step, (x_t, time, previous_x0) in enumerate(seen):
        t = jnp.asarray(time[:, :1, None, None, None]) / 1000
        noises.append((x_t[:, :1] - schedule.alpha(t) * known[:, :1]) / schedule.sigma(t))
        if step:
            np.testing.assert_allclose(previous_x0[:, :1], known[:, :1], atol=1e-6)
    for noise in noises if solver != "ddpm" else ():  # which draws new noise at every step
        np.testing.assert_allclose(noise, noises[0], atol=2e-3)
    assert np.std(noises) == pytest.approx(1, abs=0.2)


def test_guidance_by_known_frames_needs_none_by_prompts(params):
    shape, keys = (FRAMES, SIDE, SIDE, CHANNELS), jax.random.split(jax.random.key(0), 2)
    mask = jnp.zeros((2, FRAMES, SIDE, SIDE, 1)).at[:, :1].set(1)
    given = Conditions(
        known=mask * jnp.ones(CHANNELS),
        known_mask=mask,
        low_resolution=jnp.zeros((2, FRAMES, 2, 2, CHANNELS)),
        scalars={"low_resolution_time": jnp.full((2, FRAMES), 0.1)},
    )

    def draw(known_guidance, rescale=0.0):
        sampler = SamplerConfig(steps=3, known_guidance=known_guidance, guidance_rescale=rescale)
        run = lambda labels: text_to_latents(  # noqa: E731
            TASK.denoiser.bind(params), labels, keys, shape, DIFFUSION, sampler, given=given
        )
        return np.asarray(jax.jit(run)(jnp.array([0, 3])))

    assert np.abs(draw(3.0) - draw(1.0)).max() > 1e-3
    assert np.abs(draw(3.0, 0.7) - draw(3.0)).max() > 1e-3


def test_a_model_trained_without_self_conditioning_never_samples_with_it(params):
    class Refuses:
        config = EVERYTHING

        def __call__(self, x_t, time, previous_x0, *, is_image, conditions):
            return x_t + 1e3 * previous_x0

    shape, keys = (FRAMES, SIDE, SIDE, CHANNELS), jax.random.split(jax.random.key(0), 2)
    draw = lambda rate: text_to_latents(  # noqa: E731
        Refuses(), None, keys, shape, DiffusionConfig(self_conditioning_rate=rate), SamplerConfig(steps=3)
    )
    assert np.abs(draw(0.0)).max() < 1e3 < np.abs(draw(0.9)).max()
