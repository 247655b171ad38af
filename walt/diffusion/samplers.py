"""Drawing latents: a solver's steps over a fixed list of times, all in one loop or some at a time.

A `Denoise` function maps (x_t, t, previous_x0) to a prediction. `previous_x0` is the estimate of the last step, zeros
at first, for denoisers trained with self-conditioning; with guidance it is the guided estimate. One that reuses what it has computed takes what it
has kept as a fourth argument, and gives back what it keeps beside the prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt.config import ConfigError
from walt.diffusion.canvas import Canvas, Course
from walt.diffusion.configs import SamplerConfig
from walt.diffusion.parameterisation import Prediction, to_x0_and_noise
from walt.diffusion.process import NUM_TIMESTEPS, Schedule, over_frames
from walt.diffusion.solvers import MEMORY, SOLVERS, Estimate, Grid, Point

Denoise = Callable[..., Any]
KARRAS_RHO = 7.0
GOING_BACK = 2**30
"""Added to a step's number for the noise by which it is taken again."""


class Draft(NamedTuple):
    """Latents between two steps of a sampler: all that the steps to come need of those taken.

    Attributes:
      x: the latents at the time of the next step.
      estimate: of the clean latents by the last step.
    """

    x: Float[Array, "b f ..."]
    estimate: Estimate


def lay_out(config: SamplerConfig, schedule: Schedule) -> Grid:
    """The times of a sampler, from noise down to data, `steps + 1` of them.

    Raises:
      ConfigError: the schedule does not take these steps, or has fewer times than that.
    """
    config.check_schedule(schedule)
    steps, even = config.steps, np.arange(config.steps, 0, -1) / config.steps
    match config.spacing:
        case "trailing":
            t = even
        case "linspace":
            t = np.linspace(1, schedule.first, steps)
        case "leading":
            t = even - 1 / steps + schedule.first
            if schedule.discrete:
                t = np.floor((even - 1 / steps) * NUM_TIMESTEPS + 1e-9) / NUM_TIMESTEPS + schedule.first
        case "karras":
            ends = np.array([1.0, schedule.first])
            highest, lowest = (schedule.sigma(ends) / schedule.alpha(ends)) ** (1 / KARRAS_RHO)
            t = schedule.time_of(np.linspace(highest, lowest, steps) ** KARRAS_RHO)
    if schedule.discrete:
        t = np.round(t * NUM_TIMESTEPS) / NUM_TIMESTEPS
        if np.any(np.diff(t) >= 0):
            raise ConfigError(
                f"spacing: {config.spacing!r} with {steps} steps visits some of the {NUM_TIMESTEPS} times of the schedule twice; "
                "take fewer steps"
            )
    return Grid(np.append(t, 0.0), np.append(schedule.alpha(t), 1.0), np.append(schedule.sigma(t), 0.0))


def row_noise(keys: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> Float[Array, "b ..."]:
    """Standard normal noise of `shape` for every row, from that row's key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def begin(
    schedule: Schedule,
    config: SamplerConfig,
    shape: tuple[int, ...],
    keys: jax.Array,
    *,
    canvas: Canvas | None = None,
    kept: Any = None,
    dtype=jnp.float32,
) -> Draft:
    """What the first turn of `sample` starts from: noise of each row's key, and what is held with the noise of that time; `kept` as in `Estimate`."""
    grid = lay_out(config, schedule)
    noise = row_noise(_folded(keys, 0), shape, dtype)
    # What x has of data of unit variance at the first time: 1 where variance is preserved.
    start = noise * float(np.hypot(grid.alpha[0], grid.sigma[0]))
    if canvas is not None:
        start = jnp.where(canvas.mask > 0, grid.alpha[0] * canvas.known + grid.sigma[0] * noise, start)
    return Draft(start, Estimate(jnp.zeros_like(start), kept))


def sample(
    denoise: Denoise,
    schedule: Schedule,
    config: SamplerConfig,
    shape: tuple[int, ...],
    keys: jax.Array,
    *,
    prediction: Prediction = "v",
    canvas: Canvas | None = None,
    dtype=jnp.float32,
) -> Float[Array, "b f ..."]:
    """Latents of `shape` (one row: `(F, h, w, c)`) for each of the `keys` [B]. A row depends on its own key, whatever
    its neighbours. See `take_steps` for the arguments."""
    draft = begin(schedule, config, shape, keys, canvas=canvas, dtype=dtype)
    return take_steps(denoise, schedule, config, keys, draft, (0, config.turns), prediction=prediction, canvas=canvas).x


def take_steps(
    denoise: Denoise,
    schedule: Schedule,
    config: SamplerConfig,
    keys: jax.Array,
    draft: Draft,
    span: tuple[Any, Any],
    *,
    prediction: Prediction = "v",
    canvas: Canvas | None = None,
) -> Draft:
    """The draft after the turns from `span[0]` up to `span[1]` of `config.turns`; both may be traced, and then one compiled
    program takes any of them.

    What a `canvas` holds takes no prediction, since training asks for none there: at every time it is the known latents with the noise of that time,
    which is how the network was shown it, and in the end it is they. Frames with a level of their own wait there for the sampler's time.

    `denoise` receives x_t [B, *shape], t [B, F] and previous_x0 [B, *shape], and returns the named prediction;
    guidance, if any, is already inside it. Raises `ConfigError` for steps that the schedule does not take.
    """
    grid = lay_out(config, schedule)
    numbers, step = SOLVERS[config.solver](grid, schedule, config)
    shape, dtype = draft.x.shape[1:], draft.x.dtype
    course = None if canvas is None else canvas.course(grid.t, schedule, row_noise(_folded(keys, 0), shape, dtype))

    def evaluate(x: Array, previous: Estimate, at: Point) -> tuple[Estimate, Array]:
        time, alpha, sigma = jnp.full((keys.shape[0], shape[0]), at.t, dtype), at.alpha, at.sigma
        if course is not None and course.level is not None:
            x, time = course.place(x, at.t), jnp.maximum(course.time(at.t), schedule.first)
            alpha, sigma = (over_frames(scale(time), x) for scale in (schedule.alpha, schedule.sigma))
        kept = previous.kept
        if kept is None:
            value = denoise(x, time, previous.x0)
        else:
            value, kept = denoise(x, time, previous.x0, kept)
        x0, noise = to_x0_and_noise(prediction, value.astype(dtype), x, alpha, sigma)
        if course is None:
            return Estimate(x0, kept), noise
        known, held = course.canvas.known, course.canvas.mask > 0
        return Estimate(jnp.where(held, known, x0), kept), jnp.where(held, (x - alpha * known) / sigma, noise)

    here = Point(*(values[:-1] for values in grid))
    each = jax.tree.map(lambda values: jnp.asarray(values, dtype), (here, grid.after(), numbers))
    order, back = _visits(grid, config.visits, dtype)
    turns = (*jax.tree.map(lambda values: values[order], each), back)

    def advance(number: Array, draft: Draft) -> Draft:
        here, after, own, back = jax.tree.map(
            lambda values: jax.lax.dynamic_index_in_dim(values, number, keepdims=False), turns
        )
        fresh = lambda more: row_noise(_folded(keys, number + 1 + more), shape, dtype)  # noqa: E731
        x, previous = draft
        if MEMORY in own:
            own = {**own, MEMORY: own[MEMORY] * _remembers(course, back["before"], here.t, x)}
        if config.visits > 1:
            x = back["keep"] * x + back["fresh"] * fresh(GOING_BACK)
        if course is None or course.level is None:
            return Draft(*step(evaluate, x, previous, here, after, own, lambda: fresh(0)))
        x = course.place(x, here.t)
        # A row that waits is left alone, whatever its neighbours do: its first step has no estimate before it.
        rows = course.moves(here.t, after.t)

        def moved() -> tuple[Array, Estimate]:
            x_made, estimate = step(evaluate, x, previous, here, after, own, lambda: fresh(0))
            where = over_frames(rows, x) > 0
            return jnp.where(where, x_made, x), estimate._replace(x0=jnp.where(where, estimate.x0, previous.x0))

        return Draft(*jax.lax.cond(rows.any(), moved, lambda: (x, previous)))

    draft = jax.lax.fori_loop(*span, advance, draft)
    if course is None:
        return draft
    return draft._replace(x=jnp.where(span[1] == config.turns, course.finish(draft.x), draft.x))


def _visits(grid: Grid, visits: int, dtype: Any) -> tuple[np.ndarray, dict[str, Array]]:
    """Which step is taken after which, and how x of the time after a step becomes x of the time before it: as the process itself adds noise."""
    keep = grid.alpha[:-1] / grid.alpha[1:]
    fresh = np.sqrt(np.maximum(grid.sigma[:-1] ** 2 - (keep * grid.sigma[1:]) ** 2, 0))
    order = np.repeat(np.arange(len(keep)), visits)
    again = np.arange(len(order)) % visits > 0
    before = np.concatenate([grid.t[:1], grid.t[order][:-1]])  # time of the turn before
    back = {"keep": np.where(again, keep[order], 1.0), "fresh": np.where(again, fresh[order], 0.0), "before": before}
    return order, {name: jnp.asarray(values, dtype) for name, values in back.items()}


def _remembers(course: Course | None, before: Array, now: Array, x: Array) -> Array:
    """1 for frames whose last estimate was made at the time before; 0 where there is none, or it was made at this very time: of a frame that has waited
    there, or of a step that is taken again."""
    if course is None:
        return (before > now).astype(x.dtype)
    return over_frames(course.time(before) > course.time(now), x)


def _folded(keys: jax.Array, number) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
