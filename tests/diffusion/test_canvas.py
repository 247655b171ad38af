"""What training shows of a video, and what a sampler makes of masks and levels."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.canvas import PATTERNS, Canvas, draw_canvas
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.process import make_tables
from walt.diffusion.samplers import sample

SIZE, ROWS = (5, 4, 6), 2000
SHAPE = (*SIZE, 2)
SCHEDULE = make_tables("linear", True)


def masks_of(*patterns, rate=1.0, rows=ROWS):
    diffusion = DiffusionConfig(known_rate=rate, known_patterns=patterns, known_frames=(1, 2))
    x0 = jnp.ones((rows, *SHAPE))
    keys = jax.random.split(jax.random.key(0), rows)
    known, mask = jax.jit(partial(draw_canvas, diffusion))(x0, jnp.arange(rows) % 4 == 3, keys)
    np.testing.assert_array_equal(known, np.broadcast_to(mask, known.shape))
    return np.asarray(mask[..., 0]) > 0


def test_all_patterns_are_drawn_and_leave_something_to_generate():
    mask = masks_of(*PATTERNS, rate=0.5)
    assert not mask[3::4].any(), "nothing of stills is known"
    videos = np.delete(mask, np.s_[3::4], axis=0)
    assert videos.any((1, 2, 3)).mean() == pytest.approx(0.48, abs=0.05)  # some of the random frames are none
    assert not videos.all((1, 2, 3)).any()
    partly = [row for row in videos if not (row == row[:, :1, :1]).all()]
    assert np.mean([(row == row[:1]).all() for row in partly]) == pytest.approx(0.6, abs=0.15), (
        "over all frames or some"
    )


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_what_it_is_called(name):
    videos = np.delete(masks_of(name), np.s_[3::4], axis=0)
    frames = videos.all((2, 3))
    kinds = {tuple(row) for row in frames.astype(int)}
    match name:
        case "first":
            assert kinds == {(1, 0, 0, 0, 0), (1, 1, 0, 0, 0)}
        case "last":
            assert kinds == {(0, 0, 0, 0, 1), (0, 0, 0, 1, 1)}
        case "ends":
            assert kinds == {(1, 0, 0, 0, 1), (1, 1, 0, 0, 1), (1, 0, 0, 1, 1), (1, 1, 0, 1, 1)}
        case "gap":
            assert all(np.abs(np.diff([1, *row, 1])).sum() == 2 for row in kinds) and len(kinds) == 15
        case "frames":
            assert kinds == set(np.ndindex(2, 2, 2, 2, 2)) - {(1, 1, 1, 1, 1)}
        case "box":
            assert np.any(videos.any((2, 3)) != frames)


def test_times_may_be_unequal():
    diffusion = DiffusionConfig(unequal_rate=0.3)
    draw = lambda key, still: diffusion.draw_times(SCHEDULE, key, 5, still)  # noqa: E731
    t = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), ROWS), jnp.zeros(ROWS, bool)))
    unequal = np.any(t != t[:, :1], axis=1)
    assert unequal.mean() == pytest.approx(0.3, abs=0.04) and t[unequal].mean() == pytest.approx(0.5, abs=0.03)


def ideal(target, seen):
    """A network of data that are always `target`."""

    def denoise(x_t, t, previous_x0):
        jax.debug.callback(lambda *values: seen.append([np.asarray(value) for value in values]), x_t, t, ordered=True)
        alpha, sigma = (jnp.reshape(scale(t), (*t.shape, 1, 1, 1)) for scale in (SCHEDULE.alpha, SCHEDULE.sigma))
        return (alpha * x_t - target) / sigma  # v of (x0, noise) at x_t

    return denoise


def run(canvas, steps=10, target=0.5, seed=0, **options):
    seen = []
    keys = jax.random.split(jax.random.key(seed), canvas.mask.shape[0])
    config = SamplerConfig(steps=steps, **options)
    latents = jax.jit(lambda c: sample(ideal(target, seen), SCHEDULE, config, SHAPE, keys, canvas=c))(canvas)
    jax.effects_barrier()
    return np.asarray(latents), seen


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m", "flow_heun"])
def test_what_is_held_comes_back_and_the_rest_is_generated(solver):
    known = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    mask = jnp.zeros((2, *SIZE, 1)).at[0, :, 1:3].set(1).at[1, -1].set(1)
    latents, _ = run(Canvas(known, mask), solver=solver)
    np.testing.assert_array_equal(latents, np.where(mask > 0, known, latents))
    np.testing.assert_allclose(latents, np.where(mask > 0, known, 0.5), atol=1e-4)


def test_frames_wait_at_their_level():
    """Told the time of the level and shown its noise, until the sampler gets there; at 0 they stay what they are."""
    known = 3 + jax.random.normal(jax.random.key(1), (1, *SHAPE))
    level = jnp.array([[0.0, 0.3, 0.52, 1.0, 1.0]])
    latents, seen = run(Canvas(known, jnp.zeros((1, *SIZE, 1)), level))
    times = np.stack([t[0] for _, t in seen])
    even = np.arange(10, 0, -1) / 10
    np.testing.assert_allclose(times[:, 3], even, atol=1e-6)
    np.testing.assert_allclose(times[:, 1], np.minimum(even, 0.3), atol=1e-6)
    np.testing.assert_allclose(times[:, 2], np.minimum(even, 0.5), atol=1e-6)  # the nearest time of the sampler
    np.testing.assert_allclose(times[:, 0], 1e-3, atol=1e-9)  # the least that was trained
    for x, _ in seen[:7]:
        np.testing.assert_array_equal(x[0, 1], seen[0][0][0, 1])
    noise = (seen[0][0][0, 1] - SCHEDULE.alpha(np.array(0.3)) * known[0, 1]) / SCHEDULE.sigma(np.array(0.3))
    assert abs(noise.mean()) < 0.5 and noise.std() == pytest.approx(1, abs=0.3)
    np.testing.assert_array_equal(latents[0, 0], known[0, 0])
    np.testing.assert_allclose(latents[0, 1:], 0.5, atol=1e-4)


def test_steps_that_change_nothing_are_not_taken():
    known, nothing = jnp.ones((2, *SHAPE)), jnp.zeros((2, *SIZE, 1))
    latents, seen = run(Canvas(known, nothing, jnp.zeros((2, 5))))
    assert not seen
    np.testing.assert_array_equal(latents, known)
    assert len(run(Canvas(known, nothing, jnp.full((2, 5), 0.4)))[1]) == 4


def test_context_may_be_shown_by_its_noise_alone():
    """A frame that is held as a whole at a level stays there, and comes back clean; it is not on the channels of what is known."""
    known = jax.random.normal(jax.random.key(1), (1, *SHAPE))
    mask = jnp.zeros((1, *SIZE, 1)).at[:, :2].set(1)
    canvas = Canvas(known, mask, jnp.array([[0.07, 1.0, 1.0, 1.0, 1.0]]))
    shown, where = canvas.shown()
    np.testing.assert_array_equal(where[0, :, 0, 0, 0], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(shown, where * known)
    latents, seen = run(canvas)
    np.testing.assert_allclose([t[0, 0] for _, t in seen], 0.07)
    np.testing.assert_array_equal(latents[:, :2], known[:, :2])
    for x, _ in seen:
        np.testing.assert_array_equal(x[0, 0], seen[0][0][0, 0])


def test_steps_may_be_visited_again():
    """RePaint: the process adds the noise back, so that x keeps the spread of its time."""
    canvas = Canvas(jnp.zeros((8, *SHAPE)), jnp.zeros((8, *SIZE, 1)).at[:, :1].set(1))
    latents, seen = run(canvas, steps=5, visits=3)
    assert len(seen) == 15 and latents[:, 1:] == pytest.approx(0.5, abs=1e-4)
    for x, t in seen:
        alpha, sigma = SCHEDULE.alpha(t[0, :1]), SCHEDULE.sigma(t[0, :1])
        assert (x[:, 1:] - alpha * 0.5).std() == pytest.approx(sigma[0], rel=0.1)
    assert len({x[0, 1].tobytes() for x, _ in seen}) == 15


def test_a_row_depends_on_its_own_canvas_only():
    known = jax.random.normal(jax.random.key(1), (4, *SHAPE))
    mask = jnp.zeros((4, *SIZE, 1)).at[1, :2].set(1).at[2, :, 2].set(1)
    level = jnp.ones((4, 5)).at[3].set(0.5)  # which waits while the others move
    config, keys = SamplerConfig(steps=4, eta=0.5), jax.random.split(jax.random.key(0), 4)
    draw = jax.jit(lambda k, c: sample(lambda x, t, last: jnp.tanh(x + last), SCHEDULE, config, SHAPE, k, canvas=c))
    together = draw(keys, Canvas(known, mask, level))
    for row in range(4):
        alone = draw(keys[row : row + 1], Canvas(*(x[row : row + 1] for x in (known, mask, level))))
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"known_patterns": ()}, "known_patterns is empty, expected any of first"),
        ({"known_patterns": ("middle",)}, "unknown known patterns 'middle'"),
        ({"unequal_rate": 1.5}, "unequal_rate: 1.5 is not a probability"),
    ],
)
def test_bad_settings_are_named(bad, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(DiffusionConfig(), **bad)
    with pytest.raises(ConfigError, match="visits: 0 is out of range"):
        SamplerConfig(visits=0)
