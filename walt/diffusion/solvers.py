"""Steps of a sampler: from the latents at one time to those at the next.

A solver is made of a grid of times: numbers of every step, laid out in float64, and a function that takes one step with its
numbers. `Evaluate` asks the network for (estimate, noise) at the latents and time it is given, and given its last estimate, which is
both what a self-conditioned network sees and the memory of the multistep solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.process import Schedule


class Point(NamedTuple):
    """A time of the grid, with its scales of data and noise: NumPy's while steps are laid out, traced when they are taken."""

    t: Any
    alpha: Any
    sigma: Any


class Grid(NamedTuple):
    """All times of a sampler, from noise to data, `[steps + 1]` each in float64; the last is t = 0, alpha = 1, sigma = 0."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    def after(self) -> Point:
        """The point that each step goes to."""
        return Point(self.t[1:], self.alpha[1:], self.sigma[1:])


class Estimate(NamedTuple):
    """What one evaluation of the network leaves for the next.

    Attributes:
      x0: the clean latents as it estimates them, zeros before the first.
      kept: what it may reuse, see `SamplerConfig.reuse`; None for nothing.
    """

    x0: Array
    kept: Any = None


Numbers = dict[str, Any]
MEMORY = "extrapolation"
"""The number by which a multistep solver goes on from the last estimate; the sampler makes it 0 for frames that have none of the time before."""
Evaluate = Callable[[Array, Estimate, Point], tuple[Estimate, Array]]
Step = Callable[[Evaluate, Array, Estimate, Point, Point, Numbers, Callable[[], Array]], tuple[Array, Estimate]]
"""(evaluate, x, previous estimate, now, after, numbers, fresh noise) to (x at `after`, estimate)."""


def ddim(grid: Grid, schedule: Schedule, config: SamplerConfig) -> tuple[Numbers, Step]:
    """Song et al. 2021, equation 12, for any alpha and sigma; first order. With eta = 1 it is DDPM's ancestral sampler."""
    eta = 1.0 if config.solver == "ddpm" else config.eta
    alpha, sigma, (_, next_alpha, next_sigma) = grid.alpha[:-1], grid.sigma[:-1], grid.after()
    # The spread of x at the next time given x now and x0, of the process itself: 1 − (ratio of signal-to-noise ratios).
    fresh = eta * next_sigma * np.sqrt(np.maximum(1 - (alpha * next_sigma / (next_alpha * sigma)) ** 2, 0))
    numbers = {"fresh": fresh, "kept": np.sqrt(np.maximum(next_sigma**2 - fresh**2, 0))}

    def step(evaluate, x, previous, now, after, numbers, noise):
        estimate, direction = evaluate(x, previous, now)
        x = after.alpha * estimate.x0 + numbers["kept"] * direction
        return (x + numbers["fresh"] * noise() if eta else x), estimate

    return numbers, step


def dpmpp_2m(grid: Grid, schedule: Schedule, config: SamplerConfig) -> tuple[Numbers, Step]:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; second order, one evaluation per step.

    Its first step is of first order for want of a memory, and so are those from pure noise and to clean data, where
    log(alpha / sigma) is infinite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.diff(np.log(grid.alpha) - np.log(grid.sigma))
        extrapolation = np.concatenate([[0.0], h[1:] / (2 * h[:-1])])
    extrapolation = np.where(np.isfinite(extrapolation), extrapolation, 0.0)
    _, next_alpha, next_sigma = grid.after()
    shrink = next_sigma / grid.sigma[:-1]
    numbers = {"shrink": shrink, "gain": next_alpha - grid.alpha[:-1] * shrink, MEMORY: extrapolation}

    def step(evaluate, x, previous, now, after, numbers, noise):
        estimate, _ = evaluate(x, previous, now)
        ahead = estimate.x0 + numbers[MEMORY] * (estimate.x0 - previous.x0)
        return numbers["shrink"] * x + numbers["gain"] * ahead, estimate

    return numbers, step


def heun(grid: Grid, schedule: Schedule, config: SamplerConfig) -> tuple[Numbers, Step]:
    """Karras et al. 2022, algorithm 2, along x / alpha over sigma / alpha, whose derivative is the noise; second order."""
    ratio = grid.sigma / grid.alpha
    churned = (ratio[:-1] >= config.churn_range[0]) & (ratio[:-1] <= config.churn_range[1])
    raised = ratio[:-1] * (1 + np.where(churned, min(config.churn / config.steps, math.sqrt(2) - 1), 0.0))
    numbers = {"half": grid.alpha[1:] * (ratio[1:] - raised) / 2}
    if config.churn:
        numbers |= {
            "raised_t": schedule.time_of(raised),
            "raised_sigma": raised,  # churn is of the edm schedule alone, and there alpha is 1
            "fresh": config.churn_noise * np.sqrt(raised**2 - ratio[:-1] ** 2),
        }

    def step(evaluate, x, previous, now, after, numbers, noise):
        if config.churn:
            x = x + numbers["fresh"] * noise()
            now = Point(numbers["raised_t"], now.alpha, numbers["raised_sigma"])
        return _corrected(evaluate, x, previous, now, after, numbers["half"], lambda x0, noise: noise)

    return numbers, step


def flow_euler(grid: Grid, schedule: Schedule, config: SamplerConfig) -> tuple[Numbers, Step]:
    """Euler's method along x / (alpha + sigma) over sigma / (alpha + sigma), whose derivative is the flow; first order."""
    size = grid.alpha + grid.sigma
    numbers = {"keep": size[1:] / size[:-1], "stride": size[1:] * np.diff(grid.sigma / size)}

    def step(evaluate, x, previous, now, after, numbers, noise):
        estimate, direction = evaluate(x, previous, now)
        return numbers["keep"] * x + numbers["stride"] * (direction - estimate.x0), estimate

    return numbers, step


def flow_heun(grid: Grid, schedule: Schedule, config: SamplerConfig) -> tuple[Numbers, Step]:
    """Heun's method in the coordinates of `flow_euler`; second order."""
    size = grid.alpha + grid.sigma
    numbers = {"half": size[1:] * np.diff(grid.sigma / size) / 2}

    def step(evaluate, x, previous, now, after, numbers, noise):
        return _corrected(evaluate, x, previous, now, after, numbers["half"], lambda x0, noise: noise - x0)

    return numbers, step


def _corrected(
    evaluate: Evaluate,
    x: Array,
    previous: Estimate,
    now: Point,
    after: Point,
    half: Array,
    derivative: Callable[[Array, Array], Array],
) -> tuple[Array, Estimate]:
    """Euler's step, and half the change of the derivative over it; the step to clean data is Euler's alone."""
    estimate, noise = evaluate(x, previous, now)
    euler = after.alpha * estimate.x0 + after.sigma * noise

    def correct() -> tuple[Array, Estimate]:
        corrected, next_noise = evaluate(euler, estimate, after)
        change = derivative(corrected.x0, next_noise) - derivative(estimate.x0, noise)
        return euler + half * change, corrected

    return jax.lax.cond(after.sigma > 0, correct, lambda: (euler, estimate))


SOLVERS: dict[str, Callable[[Grid, Schedule, SamplerConfig], tuple[Numbers, Step]]] = {
    "ddim": ddim,
    "ddpm": ddim,
    "dpmpp_2m": dpmpp_2m,
    "heun": heun,
    "flow_euler": flow_euler,
    "flow_heun": flow_heun,
}
