"""The training task, with a small stand-in for the denoiser whose passes can be counted."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.config import ConfigError
from walt.diffusion import process
from walt.diffusion.configs import DiffusionConfig
from walt.diffusion.task import DiffusionTask
from walt.text.encoder import TextEncoderConfig
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
TEXT = TextEncoderConfig(vocab_size=11, width=WIDTH, depth=1, heads=2)
SEEN: list[SimpleNamespace] = []


class StandIn(nnx.Module):
    """A per-position linear map with the interface of `Denoiser`; records what it is traced with."""

    def __init__(self, transformer, text, rngs):
        self.kernel = nnx.Param(0.3 * jax.random.normal(rngs.params(), (2 * CHANNELS, CHANNELS)))
        self.table = nnx.Param(jax.random.normal(rngs.params(), (11, WIDTH)))

    def embed_text(self, tokens, mask):
        return self.table[...][tokens] * mask[..., None]

    def __call__(self, x_t, t, previous_x0, *, is_image, text):
        SEEN.append(SimpleNamespace(x_t=x_t, t=t, previous_x0=previous_x0, is_image=is_image, text=text))
        shift = 0.0
        if text is not None:
            word = jnp.where(text.drop[..., None], 0.0, text.embeddings.mean(axis=2))
            shift = jnp.take_along_axis(word, text.caption_index[..., None], axis=1).mean(-1)[..., None, None, None]
        return jnp.concatenate([x_t, previous_x0], -1) @ self.kernel[...] + shift


def make_task(**changes):
    SEEN.clear()
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


def losses(task, batch, key=7):
    params, extra = task.init(jax.random.key(0))
    return task.row_losses(params["model"], extra, batch, jax.random.key(key))


@pytest.mark.parametrize(("rate", "passes"), [(0.0, 1), (0.5, 2), (1.0, 2)])
def test_self_conditioning_costs_exactly_one_pass_and_nothing_at_rate_zero(rate, passes):
    losses(make_task(self_conditioning_rate=rate), make_batch(4))
    assert len(SEEN) == passes
    np.testing.assert_array_equal(SEEN[0].previous_x0, 0)


def test_self_conditioning_is_drawn_per_row_with_its_rate_and_feeds_the_unclipped_estimate():
    task = make_task(self_conditioning_rate=0.7)
    batch = make_batch(400)
    params, extra = task.init(jax.random.key(0))
    params["model"]["kernel"] = params["model"]["kernel"] * 20  # so that estimates leave any range one might clip to
    task.row_losses(params["model"], extra, batch, jax.random.key(1))
    first, second = SEEN
    fed = np.any(np.asarray(second.previous_x0) != 0, axis=(1, 2, 3, 4))
    assert abs(fed.mean() - 0.7) < 0.08
    model = task.denoiser.bind(params["model"], extra)
    v = np.asarray(model(first.x_t, first.t, jnp.zeros_like(first.x_t), is_image=first.is_image, text=first.text))
    alpha, sigma = (
        np.asarray(process.over_frames(f(first.t), first.x_t)) for f in (task.schedule.alpha, task.schedule.sigma)
    )
    estimate = alpha * first.x_t - sigma * v
    np.testing.assert_allclose(second.previous_x0[fed], estimate[fed], rtol=1e-5, atol=1e-5)
    assert np.abs(estimate).max() > 10


def test_no_gradient_flows_through_the_self_conditioning_pass():
    """The gradient equals that of a loss whose estimate of x0 is a constant."""
    task = make_task(self_conditioning_rate=1.0)
    batch, key = make_batch(4), jax.random.key(3)
    params, extra = task.init(jax.random.key(0))
    params = params["model"]
    state = SimpleNamespace(params={"model": params}, extra=extra)
    grads, _, metrics = task.gradients(state, batch, key)
    task.row_losses(params, extra, batch, key)
    call = SEEN[-1]
    alpha, sigma = (process.over_frames(f(call.t), call.x_t) for f in (task.schedule.alpha, task.schedule.sigma))
    target = alpha * (call.x_t - alpha * batch["latents"]) / sigma - sigma * batch["latents"]

    def with_constant(params):
        model = task.denoiser.bind(params, extra)
        text = call.text._replace(embeddings=model.embed_text(batch["caption_tokens"], batch["caption_mask"]))
        value = model(call.x_t, call.t, call.previous_x0, is_image=call.is_image, text=text)
        return jnp.mean((value - target) ** 2)

    np.testing.assert_allclose(metrics["loss"], with_constant(params), rtol=1e-3)
    for found, expected in zip(jax.tree.leaves(grads["model"]), jax.tree.leaves(jax.grad(with_constant)(params))):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_target_is_v_with_the_signs_of_the_specification():
    """A denoiser of zeros has the loss mean(v²), and v is made of what the model was shown."""
    task = make_task(self_conditioning_rate=0.0, text_dropout=1.0)
    batch = make_batch(6)
    params, extra = task.init(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, params["model"])
    found = task.row_losses(params, extra, batch, jax.random.key(5))
    x_t, t = np.asarray(SEEN[0].x_t, np.float64), np.asarray(SEEN[0].t)
    index = np.round(t * 1000).astype(int)
    alpha, sigma = (
        table[index][..., None, None, None] for table in (task.schedule.alpha_table, task.schedule.sigma_table)
    )
    noise = (x_t - alpha * batch["latents"]) / sigma
    v = alpha * noise - sigma * batch["latents"]
    np.testing.assert_allclose(found, np.mean(v**2, axis=(1, 2, 3, 4)), rtol=1e-3)


def test_videos_share_a_time_and_images_have_their_own():
    losses(make_task(), make_batch(40))
    t = np.asarray(SEEN[0].t)
    assert np.all(t[0::2] == t[0::2, :1])
    assert np.mean(t[1::2, 0] != t[1::2, 1]) > 0.9


def test_text_dropout_is_per_caption():
    losses(make_task(text_dropout=0.3), make_batch(300))
    drop = np.asarray(SEEN[0].text.drop)
    assert drop.shape == (300, FRAMES) and abs(drop.mean() - 0.3) < 0.05
    assert np.any(drop.any(1) & ~drop.all(1))


@pytest.mark.parametrize("prediction", ["v", "x0", "noise"])
def test_a_row_does_not_depend_on_its_neighbours_or_on_the_split(prediction):
    task = make_task(prediction=prediction, zero_terminal_snr=prediction != "noise")
    batch = make_batch(6)
    whole = losses(task, batch)
    parts = [losses(task, {name: value[rows] for name, value in batch.items()}) for rows in ([0, 3], [1, 4], [5, 2])]
    np.testing.assert_allclose(np.concatenate(parts), whole[np.array([0, 3, 1, 4, 5, 2])], rtol=1e-5)
    others = make_batch(6, seed=9)
    mixed = {
        name: np.where((np.arange(6) == 2).reshape(6, *[1] * (value.ndim - 1)), value, others[name])
        for name, value in batch.items()
    }
    np.testing.assert_allclose(losses(task, mixed)[2], whole[2], rtol=1e-5)
    assert np.abs(np.asarray(losses(task, batch, key=8)) - whole).min() > 0


def test_unconditional():
    task = DiffusionTask(dataclasses.replace(TRANSFORMER, text_width=None), None, DiffusionConfig(), StandIn)
    assert set(task.batch_spec()) == {"latents", "is_image", "row"}
    SEEN.clear()
    assert np.isfinite(losses(task, make_batch(2))).all() and SEEN[0].text is None


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
        {"prediction": "flow"},
    ],
)
def test_bad_settings_name_the_field(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DiffusionConfig(**bad)
