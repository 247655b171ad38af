"""The noising process x_t = alpha(t) x0 + sigma(t) noise, with t in [0, 1], t = 1 being noise.

Schedules are tables at t = i/1000 for i = 0...1000, computed once in float64. Entry 0 is clean data (alpha 1, sigma 0);
training draws i from 1...1000 and samplers end at entry 0.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from walt.config import ConfigError

NUM_TIMESTEPS = 1000
ScheduleName = Literal["linear", "cosine"]


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A variance-preserving process: alpha² + sigma² = 1 at every t.

    `alpha_table` and `sigma_table` are float64 of shape [1001], entry i at t = i/1000.
    """

    alpha_table: np.ndarray
    sigma_table: np.ndarray

    def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Scale of the data at times `t` in [0, 1]; `t` is rounded to the nearest i/1000."""
        return _look_up(self.alpha_table, t)

    def sigma(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Scale of the noise at times `t` in [0, 1]; `t` is rounded to the nearest i/1000."""
        return _look_up(self.sigma_table, t)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether x_1 carries no trace of the data."""
        return bool(self.alpha_table[-1] == 0.0)


def make_schedule(name: ScheduleName, zero_terminal_snr: bool) -> Schedule:
    """The named schedule as tables.

    `linear`: beta from 1e-4 to 0.02 over 1000 steps (Ho et al. 2020). `cosine`: Nichol & Dhariwal 2021, equation 17,
    beta clipped at 0.999.
    `zero_terminal_snr` rescales alpha linearly so that alpha(1) = 0 and alpha(1/1000) is unchanged (Lin et al. 2023,
    algorithm 1).

    Raises:
      ConfigError: the name is unknown.
    """
    if name == "linear":
        betas = np.linspace(1e-4, 0.02, NUM_TIMESTEPS)
    elif name == "cosine":
        times = np.arange(NUM_TIMESTEPS + 1) / NUM_TIMESTEPS
        alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    else:
        raise ConfigError(f"schedule: unknown schedule {name!r}, expected 'linear' or 'cosine'")
    alpha = np.sqrt(np.cumprod(1 - betas))
    if zero_terminal_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha = np.concatenate([[1.0], alpha])
    return Schedule(alpha_table=alpha, sigma_table=np.sqrt(1 - alpha**2))


def draw_timesteps(key: jax.Array, frames: int, is_image: Array) -> Float[Array, " f"]:
    """Times of one batch row, uniform over i/1000, i = 1...1000: one draw for a video, one per frame for a stack of
    images."""
    index: Int[Array, " f"] = jax.random.randint(key, (frames,), 1, NUM_TIMESTEPS + 1)
    return jnp.where(is_image, index, index[0]) / NUM_TIMESTEPS


def over_frames(value: Float[Array, "b f"], latents: Float[Array, "b f ..."]) -> Float[Array, "b f ..."]:
    """`value` with axes of length 1 appended, so that it multiplies `latents` frame by frame."""
    return value.reshape(value.shape + (1,) * (latents.ndim - value.ndim)).astype(latents.dtype)


def _look_up(table: np.ndarray, t: Array) -> Array:
    index = jnp.round(t * NUM_TIMESTEPS).astype(jnp.int32)
    return jnp.asarray(table)[index]
