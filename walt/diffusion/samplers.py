"""Drawing latents: DDIM (Song et al. 2021) over a fixed list of times, under one `lax.scan`.

A `Denoise` function maps (x_t, t, previous_x0) to a prediction. `previous_x0` is the estimate of the last step, zeros
at first, for denoisers trained with self-conditioning; with guidance it is the guided estimate.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.parameterisation import Prediction, to_x0_and_noise
from walt.diffusion.process import NUM_TIMESTEPS, Schedule

Denoise = Callable[[Array, Array, Array], Array]


def sampling_timesteps(config: SamplerConfig) -> Int[np.ndarray, " steps_plus_1"]:
    """Table indices from 1000 (noise) down to 0 (data), `steps + 1` of them."""
    if config.spacing == "trailing":
        visited = np.round(NUM_TIMESTEPS * np.arange(config.steps, 0, -1) / config.steps)
    else:
        visited = np.round(np.linspace(NUM_TIMESTEPS, 1, config.steps))
    return np.append(visited, 0).astype(np.int32)


def row_noise(keys: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> Float[Array, "b ..."]:
    """Standard normal noise of `shape` for every row, from that row's key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def sample(
    denoise: Denoise,
    schedule: Schedule,
    config: SamplerConfig,
    shape: tuple[int, ...],
    keys: jax.Array,
    *,
    prediction: Prediction = "v",
    dtype=jnp.float32,
) -> Float[Array, "b f ..."]:
    """Latents of `shape` (one row: `(F, h, w, c)`) for each of the `keys` [B]. A row depends on its own key, whatever
    its neighbours.

    `denoise` receives x_t [B, *shape], t [B, F] and previous_x0 [B, *shape], and returns the named prediction;
    guidance, if any, is already inside it.
    """
    indices = sampling_timesteps(config)
    alpha, sigma = schedule.alpha_table[indices], schedule.sigma_table[indices]
    fresh = config.eta * sigma[1:] / sigma[:-1] * np.sqrt(np.maximum(1 - (alpha[:-1] / alpha[1:]) ** 2, 0))
    steps = {
        "number": np.arange(1, config.steps + 1),
        "t": indices[:-1] / NUM_TIMESTEPS,
        "alpha": alpha[:-1],
        "sigma": sigma[:-1],
        "x0_scale": alpha[1:],
        "noise_scale": np.sqrt(np.maximum(sigma[1:] ** 2 - fresh**2, 0)),
        "fresh_scale": fresh,
    }
    steps = {name: jnp.asarray(value, jnp.int32 if name == "number" else dtype) for name, value in steps.items()}

    def step(carry, now):
        x_t, previous_x0 = carry
        t = jnp.full((keys.shape[0], shape[0]), now["t"], dtype)
        value = denoise(x_t, t, previous_x0).astype(dtype)
        x0, noise = to_x0_and_noise(prediction, value, x_t, now["alpha"], now["sigma"])
        x_next = now["x0_scale"] * x0 + now["noise_scale"] * noise
        if config.eta:
            x_next += now["fresh_scale"] * row_noise(_folded(keys, now["number"]), shape, dtype)
        return (x_next, x0), None

    x_1 = row_noise(_folded(keys, 0), shape, dtype)
    (latents, _), _ = jax.lax.scan(step, (x_1, jnp.zeros_like(x_1)), steps)
    return latents


def _folded(keys: jax.Array, number) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
