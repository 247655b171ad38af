"""The noising process x_t = alpha(t) x0 + sigma(t) noise, with t in [0, 1], t = 1 being noise.

Three families: variance-preserving tables (linear, cosine, sigmoid), the straight paths of flow matching, and EDM, which leaves
the data as they are and adds noise. A schedule takes NumPy times in float64 (samplers lay out their steps with it) and traced
ones alike.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt.config import ConfigError

NUM_TIMESTEPS = 1000
ScheduleName = Literal["linear", "cosine", "sigmoid", "flow", "edm"]
Times = TypeVar("Times", np.ndarray, Array)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule(abc.ABC):
    """What samplers, losses and networks ask of a process.

    Attributes:
      variance_preserving: whether alpha² + sigma² = 1 at every t.
      discrete: whether only the times i/1000 exist.
      first: the smallest time that is trained.
    """

    variance_preserving = False
    discrete = False
    first = 1 / NUM_TIMESTEPS

    @abc.abstractmethod
    def alpha(self, t: Times) -> Times:
        """Scale of the data at times `t` in [0, 1]."""

    @abc.abstractmethod
    def sigma(self, t: Times) -> Times:
        """Scale of the noise at times `t` in [0, 1]."""

    @abc.abstractmethod
    def time_of(self, ratio: Times) -> Times:
        """The time at which sigma / alpha is `ratio`."""

    def network_time(self, t: Array) -> Array:
        """What the network is told instead of `t`: 1000 t, unless a family has its own measure of noise."""
        return t * NUM_TIMESTEPS

    def input_scale(self, t: Array) -> Array | None:
        """What the network's view of x_t is multiplied by; None for 1."""
        return None

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether x_1 carries no trace of the data."""
        return bool(self.alpha(np.ones(())) == 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Tables(Schedule):
    """A variance-preserving process; float64 tables of shape [1001], entry i at t = i/1000. Entry 0 is clean data."""

    alpha_table: np.ndarray
    sigma_table: np.ndarray
    variance_preserving = True
    discrete = True

    def alpha(self, t: Times) -> Times:
        """See `Schedule`; `t` is rounded to the nearest i/1000."""
        return _look_up(self.alpha_table, t)

    def sigma(self, t: Times) -> Times:
        """See `Schedule`; `t` is rounded to the nearest i/1000."""
        return _look_up(self.sigma_table, t)

    def time_of(self, ratio: Times) -> Times:
        """See `Schedule`; not rounded."""
        with np.errstate(divide="ignore"):
            log_ratios = np.log(self.sigma_table[1:]) - np.log(self.alpha_table[1:])
        namespace = np if isinstance(ratio, np.ndarray) else jnp
        return namespace.interp(namespace.log(ratio), log_ratios, np.arange(1, NUM_TIMESTEPS + 1) / NUM_TIMESTEPS)


@dataclasses.dataclass(frozen=True, eq=False)
class FlowMatching(Schedule):
    """Straight paths from data to noise (Lipman et al. 2023, Liu et al. 2023): alpha = 1 − s, sigma = s.

    s = shift t / (1 + (shift − 1) t): more of the times lie at high noise where `shift` is above 1, as large pictures need
    (Esser et al. 2024, equation 23). The network is told 1000 s, the noise that it sees, whatever the shift.
    """

    shift: float = 1.0

    def alpha(self, t: Times) -> Times:
        """See `Schedule`."""
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Times) -> Times:
        """See `Schedule`."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time_of(self, ratio: Times) -> Times:
        """See `Schedule`."""
        return ratio / (self.shift + ratio)

    def network_time(self, t: Array) -> Array:
        """1000 sigma."""
        return self.sigma(t) * NUM_TIMESTEPS


@dataclasses.dataclass(frozen=True, eq=False)
class EDM(Schedule):
    """Karras et al. 2022: alpha = 1, and sigma^(1/rho) grows evenly with t from sigma_min to sigma_max (their equation 5).

    The data are latents of unit variance, so their sigma_data is 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    first = 0.0

    def alpha(self, t: Times) -> Times:
        """One."""
        return t * 0 + 1

    def sigma(self, t: Times) -> Times:
        """See `Schedule`."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + t * (high - low)) ** self.rho

    def time_of(self, ratio: Times) -> Times:
        """See `Schedule`."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (ratio ** (1 / self.rho) - low) / (high - low)

    def network_time(self, t: Array) -> Array:
        """c_noise = ln(sigma) / 4 (their table 1)."""
        return jnp.log(self.sigma(t)) / 4

    def input_scale(self, t: Array) -> Array | None:
        """c_in (their table 1): the network sees unit variance."""
        return jax.lax.rsqrt(1 + jnp.square(self.sigma(t)))


def make_tables(name: str, zero_terminal_snr: bool) -> Tables:
    """A named variance-preserving schedule as tables.

    `linear`: beta from 1e-4 to 0.02 over 1000 steps (Ho et al. 2020). `cosine`: Nichol & Dhariwal 2021, equation 17.
    `sigmoid`: Jabri et al. 2023, from −3 to 3 at temperature 1. Of the latter two beta is clipped at 0.999.
    `zero_terminal_snr` rescales alpha linearly so that alpha(1) = 0 and alpha(1/1000) is unchanged (Lin et al. 2023,
    algorithm 1).

    Raises:
      ConfigError: the name is unknown.
    """
    times = np.arange(NUM_TIMESTEPS + 1) / NUM_TIMESTEPS
    if name == "linear":
        betas = np.linspace(1e-4, 0.02, NUM_TIMESTEPS)
    elif name == "cosine":
        betas = _clipped_betas(np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2)
    elif name == "sigmoid":
        betas = _clipped_betas(_logistic(3.0) - _logistic(6 * times - 3))
    else:
        raise ConfigError(
            f"schedule: unknown schedule {name!r}, expected 'linear', 'cosine', 'sigmoid', 'flow' or 'edm'"
        )
    alpha = np.sqrt(np.cumprod(1 - betas))
    if zero_terminal_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha = np.concatenate([[1.0], alpha])
    return Tables(alpha_table=alpha, sigma_table=np.sqrt(1 - alpha**2))


def over_frames(value: Float[Array, "b f"], latents: Float[Array, "b f ..."]) -> Float[Array, "b f ..."]:
    """`value` with axes of length 1 appended, so that it multiplies `latents` frame by frame."""
    return value.reshape(value.shape + (1,) * (latents.ndim - value.ndim)).astype(latents.dtype)


def network_inputs(
    schedule: Schedule, x_t: Float[Array, "b f ..."], t: Float[Array, "b f"]
) -> tuple[Float[Array, "b f ..."], Float[Array, "b f"]]:
    """(x_t, t) as the network sees them."""
    scale = schedule.input_scale(t)
    return (x_t if scale is None else over_frames(scale, x_t) * x_t), schedule.network_time(t)


def _clipped_betas(alpha_bar: np.ndarray) -> np.ndarray:
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def _logistic(x: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))


def _look_up(table: np.ndarray, t: Times) -> Times:
    if isinstance(t, np.ndarray):
        return np.asarray(table[np.round(t * NUM_TIMESTEPS).astype(np.int64)])
    return jnp.asarray(table)[jnp.round(t * NUM_TIMESTEPS).astype(jnp.int32)]
