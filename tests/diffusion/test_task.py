"""The training task, with a small stand-in for the denoiser whose passes can be counted."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.config import ConfigError
from walt.diffusion.conditions import Conditions
from walt.diffusion.configs import DiffusionConfig
from walt.diffusion.task import DiffusionTask
from walt.text.config import TextEncoderConfig
from walt.transformer.config import TransformerConfig

FRAMES, SIDE, CHANNELS, LENGTH, WIDTH = 3, 4, 2, 5, 6
TRANSFORMER = TransformerConfig(
    latent_shape=(FRAMES, SIDE, SIDE),
    in_channels=2 * CHANNELS,
    out_channels=CHANNELS,
    width=8,
    depth=2,
    heads=2,
    spatial_window=(1, 4, 4),
    spacetime_window=(3, 2, 2),
    text_width=WIDTH,
)
TEXT = TextEncoderConfig(vocab_size=11, width=WIDTH, depth=1, heads=2, head_width=4, mlp_width=8)
SEEN: list[SimpleNamespace] = []


class StandIn(nnx.Module):
    """A per-position linear map with the interface of `Denoiser`; records what it is traced with."""

    def __init__(self, transformer, text, rngs):
        self.kernel = nnx.Param(0.3 * jax.random.normal(rngs.params(), (2 * CHANNELS, CHANNELS)))
        self.table = nnx.Param(jax.random.normal(rngs.params(), (11, WIDTH)))

    def embed_text(self, tokens, mask):
        return self.table[...][tokens] * mask[..., None]

    def __call__(self, x_t, t, previous_x0, *, is_image, conditions):
        text = conditions.text
        label = conditions.class_label
        SEEN.append(SimpleNamespace(x_t=x_t, t=t, previous_x0=previous_x0, is_image=is_image, text=text, label=label))
        shift = 0.0
        if text is not None:
            word = jnp.where(text.drop[..., None], 0.0, text.embeddings.mean(axis=2))
            shift = jnp.take_along_axis(word, text.caption_index[..., None], axis=1).mean(-1)[..., None, None, None]
        return jnp.concatenate([x_t, previous_x0], -1) @ self.kernel[...] + shift


def make_task(**changes):
    return DiffusionTask(TRANSFORMER, TEXT, DiffusionConfig(**({"caption_length": LENGTH} | changes)), StandIn)


def make_batch(rows, seed=0, first_row=0):
    rng = np.random.default_rng(seed)
    is_image = np.arange(rows) % 2 == 1
    return {
        "latents": rng.normal(size=(rows, FRAMES, SIDE, SIDE, CHANNELS)).astype(np.float32),
        "is_image": is_image,
        "caption_tokens": rng.integers(0, 11, (rows, FRAMES, LENGTH)).astype(np.int32),
        "caption_mask": np.ones((rows, FRAMES, LENGTH), bool),
        "caption_index": np.where(is_image[:, None], np.arange(FRAMES), 0).astype(np.int32),
        "row": np.arange(first_row, first_row + rows, dtype=np.int32),
    }


@functools.cache
def program(task):
    """(losses, what every pass of the model was given), compiled."""

    @jax.jit
    def run(params, batch, key):
        SEEN.clear()
        found = task.row_losses(params, {}, batch, key)
        return found, [vars(seen) for seen in SEEN]

    return run


def run(task, batch, key=7, params=None):
    """Losses of the rows, and the arguments of each pass."""
    params = start(task) if params is None else params
    found, seen = program(task)(params, batch, jax.random.key(key))
    return np.asarray(found), [SimpleNamespace(**call) for call in seen]


def start(task):
    return task.init(jax.random.key(0))[0]["model"]


def alpha_sigma(task, t):
    """Exact values at the times that a pass was given, to multiply latents by."""
    index = np.round(np.asarray(t)).astype(int)  # the network is told 1000 t
    return (table[index][..., None, None, None] for table in (task.schedule.alpha_table, task.schedule.sigma_table))


@pytest.mark.parametrize(("rate", "passes"), [(0.0, 1), (0.5, 2), (1.0, 2)])
def test_self_conditioning_costs_exactly_one_pass_and_nothing_at_rate_zero(rate, passes):
    _, seen = run(make_task(self_conditioning_rate=rate), make_batch(4))
    assert len(seen) == passes
    np.testing.assert_array_equal(seen[0].previous_x0, 0)


def test_self_conditioning_is_drawn_per_row_with_its_rate_and_feeds_the_unclipped_estimate():
    task = make_task(self_conditioning_rate=0.7)
    params = start(task)
    params["kernel"] = params["kernel"] * 20  # so that estimates leave any range one might clip to
    _, (first, second) = run(task, make_batch(400), params=params)
    fed = np.any(np.asarray(second.previous_x0) != 0, axis=(1, 2, 3, 4))
    assert abs(fed.mean() - 0.7) < 0.08
    model = task.denoiser.bind(params, {})
    v = model(first.x_t, first.t, jnp.zeros_like(first.x_t), is_image=first.is_image, conditions=Conditions(first.text))
    alpha, sigma = alpha_sigma(task, first.t)
    estimate = alpha * first.x_t - sigma * np.asarray(v)
    np.testing.assert_allclose(np.asarray(second.previous_x0)[fed], estimate[fed], rtol=1e-4, atol=1e-4)
    assert np.abs(estimate).max() > 10


def test_no_gradient_flows_through_the_self_conditioning_pass():
    """The gradient equals that of a loss whose estimate of x0 is a constant."""
    task = make_task(self_conditioning_rate=1.0)
    batch, params = make_batch(4), start(task)
    state = SimpleNamespace(params={"model": params}, extra={})
    grads, _, metrics = task.gradients(state, batch, jax.random.key(7))
    _, (_, call) = run(task, batch, params=params)
    alpha, sigma = alpha_sigma(task, call.t)
    target = alpha * (call.x_t - alpha * batch["latents"]) / sigma - sigma * batch["latents"]

    @jax.jit
    @jax.value_and_grad
    def with_constant(params):
        model = task.denoiser.bind(params, {})
        text = call.text._replace(embeddings=model.embed_text(batch["caption_tokens"], batch["caption_mask"]))
        value = model(call.x_t, call.t, call.previous_x0, is_image=call.is_image, conditions=Conditions(text))
        return jnp.mean((value - target) ** 2)

    loss, expected = with_constant(params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-3)
    for found, wanted in zip(jax.tree.leaves(grads["model"]), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-4)


def test_target_is_v_with_the_signs_of_the_specification():
    """A denoiser of zeros has the loss mean(v²), and v is made of what the model was shown."""
    task = make_task(self_conditioning_rate=0.0, text_dropout=1.0)
    batch = make_batch(6)
    found, (call,) = run(task, batch, params=jax.tree.map(jnp.zeros_like, start(task)))
    alpha, sigma = alpha_sigma(task, call.t)
    noise = (np.asarray(call.x_t, np.float64) - alpha * batch["latents"]) / sigma
    v = alpha * noise - sigma * batch["latents"]
    np.testing.assert_allclose(found, np.mean(v**2, axis=(1, 2, 3, 4)), rtol=1e-3)


def test_videos_share_a_time_images_have_their_own_and_text_is_dropped_per_caption():
    _, (call, _) = run(make_task(text_dropout=0.3), make_batch(400))
    t, drop = np.asarray(call.t), np.asarray(call.text.drop)
    assert np.all(t[0::2] == t[0::2, :1])
    assert np.mean(t[1::2, 0] != t[1::2, 1]) > 0.9
    assert drop.shape == (400, FRAMES) and abs(drop.mean() - 0.3) < 0.05
    assert np.any(drop.any(1) & ~drop.all(1))


def test_a_row_does_not_depend_on_its_neighbours_or_on_the_split():
    task, batch = make_task(), make_batch(6)
    whole, _ = run(task, batch)
    parts = [run(task, {name: value[rows] for name, value in batch.items()})[0] for rows in ([0, 3], [1, 4], [5, 2])]
    np.testing.assert_allclose(np.concatenate(parts), whole[[0, 3, 1, 4, 5, 2]], rtol=1e-5)
    others = make_batch(6, seed=9)
    mine = np.arange(6) == 2
    mixed = {
        name: np.where(mine.reshape(6, *[1] * (value.ndim - 1)), value, others[name]) for name, value in batch.items()
    }
    np.testing.assert_allclose(run(task, mixed)[0][2], whole[2], rtol=1e-5)
    assert np.abs(run(task, batch, key=8)[0] - whole).min() > 0


def test_unconditional():
    task = DiffusionTask(dataclasses.replace(TRANSFORMER, text_width=None), None, DiffusionConfig(), StandIn)
    assert set(task.batch_spec()) == {"latents", "is_image", "row"}
    found, seen = run(task, make_batch(2))
    assert np.isfinite(found).all() and seen[0].text is None


def test_batch_spec_names_what_the_loader_gives():
    batch = make_batch(2)
    spec = make_task().batch_spec()
    assert {name: (value.shape[1:], value.dtype) for name, value in batch.items()} == {
        name: (s.shape, s.dtype) for name, s in spec.items()
    }


def test_self_conditioning_without_channels_is_refused():
    plain = dataclasses.replace(TRANSFORMER, self_conditioning=False, in_channels=CHANNELS)
    with pytest.raises(ConfigError, match="self_conditioning_rate"):
        DiffusionTask(plain, TEXT, DiffusionConfig(self_conditioning_rate=0.5), StandIn)


@pytest.mark.parametrize(
    "bad",
    [
        {"self_conditioning_rate": 1.5},
        {"text_dropout": -0.1},
        {"caption_length": 0},
        {"schedule": "sigmoidal"},
        {"prediction": "velocity"},
    ],
)
def test_bad_settings_name_the_field(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DiffusionConfig(**bad)


def test_held_out_losses_by_time_make_up_the_whole():
    task, batch = make_task(), make_batch(16)
    metrics = jax.jit(task.eval_step)({"model": start(task)}, {}, batch, jax.random.key(3))
    buckets = [value for name, value in metrics.items() if name.startswith("loss_t")]
    assert len(buckets) == 4 and sum(int(share.number) for share in buckets) == 16 * FRAMES
    whole = sum(float(share.total) for share in buckets) / (16 * FRAMES)
    assert whole == pytest.approx(float(metrics["loss"]), rel=1e-5)
    losses, t = jax.jit(task.frame_losses)(start(task), {}, batch, jax.random.key(3))
    late = np.asarray(losses)[(np.asarray(t) > 0.75)]
    np.testing.assert_allclose(metrics["loss_t0.75-1"].total / metrics["loss_t0.75-1"].number, late.mean(), rtol=1e-5)


def test_whether_a_condition_is_dropped_does_not_depend_on_the_time():
    """One key used twice gives both the same bits: then guidance would know no null class at some times."""
    task = DiffusionTask(
        dataclasses.replace(TRANSFORMER, text_width=None, num_classes=3),
        None,
        DiffusionConfig(schedule="flow", prediction="flow", class_dropout=0.5),
        StandIn,
    )
    batch = make_batch(400) | {"class_label": np.zeros((400, FRAMES), np.int32)}
    _, (*_, seen) = run(task, batch)
    dropped, late = np.asarray(seen.label[:, 0]) == 3, np.asarray(seen.t[:, 0]) > 500
    assert all(abs(dropped[times].mean() - 0.5) < 0.15 for times in (late, ~late))
