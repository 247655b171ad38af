"""The canvas: latents of which some are known and some are to be generated, with a noise level for every latent frame.

Every task is one: image to video knows the first frame, a transition both ends, inpainting all but a box; an edit starts every frame from what is
there at a level below pure noise. W.A.L.T's frame conditioning (section 4), from frames to tokens, and the levels of diffusion forcing (Chen et al.
2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from walt.diffusion.configs import CanvasPattern, DiffusionConfig
from walt.diffusion.process import Schedule, over_frames


class Canvas(NamedTuple):
    """Arrays lead with the row axis.

    Attributes:
      known: clean latents; where nothing is known they matter only for frames of a level below 1.
      mask: 1 where they are held: they come back as they are.
      level: the time, in [0, 1], at which a frame is at most. A frame that is to be generated starts from `known` with the noise of that time: at 1 from noise
        alone, at 0 it stays what it is. A frame that is held as a whole at a level below 1 is shown with that noise throughout, and in no other way.
        None: 1 for all.
    """

    known: Float[Array, "b f h w c"]
    mask: Float[Array, "b f h w 1"]
    level: Float[Array, "b f"] | None = None

    def shown(self) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w 1"]]:
        """What a network with a canvas sees on its channels: clean latents that are held, zero elsewhere, and where they are."""
        mask = self.mask if self.level is None else self.mask * (1 - over_frames(self._noisy(), self.mask))
        return mask * self.known, mask

    def _noisy(self) -> Float[Array, "b f"]:
        """1 for frames that are held as a whole, at a level below 1."""
        assert self.level is not None
        return (self.mask.min((2, 3, 4)) > 0) * (self.level < 1).astype(self.mask.dtype)

    def course(self, times: np.ndarray, schedule: Schedule, noise: Float[Array, "b f h w c"]) -> Course:
        """It on its way through a sampler's `times`, with the noise that sampling starts from. Levels are rounded to these times, but for frames that
        stay at theirs."""
        if self.level is None:
            return Course(self, None, None, None)
        noisy = self._noisy() > 0
        grid = jnp.asarray(times, self.known.dtype)
        nearest = grid[jnp.argmin(jnp.abs(grid - self.level[..., None]), axis=-1)]
        level = jnp.where(noisy, self.level, nearest).astype(self.known.dtype)
        alpha, sigma = (over_frames(scale(level), noise) for scale in (schedule.alpha, schedule.sigma))
        # Not every schedule is without noise at t = 0, but what is at that level stays as it is.
        start = jnp.where(over_frames(level, noise) > 0, alpha * self.known + sigma * noise, self.known)
        return Course(self, level, jnp.where(noisy, level, 0.0), start)


class Course(NamedTuple):
    """A canvas while it is sampled. Without levels every frame is at the sampler's time.

    Attributes:
      level, floor: no frame is above the one, and none falls below the other.
      start: the known latents with the noise of their levels.
    """

    canvas: Canvas
    level: Float[Array, "b f"] | None
    floor: Float[Array, "b f"] | None
    start: Float[Array, "b f h w c"] | None

    def time(self, t: Array) -> Float[Array, "b f"]:
        """Of every frame, when the sampler is at `t`."""
        if self.level is None or self.floor is None:
            return jnp.full(self.canvas.mask.shape[:2], t, self.canvas.known.dtype)
        return jnp.maximum(jnp.minimum(t, self.level), self.floor)

    def moves(self, t: Array, after: Array) -> Bool[Array, " b"]:
        """Rows of which the step between these times changes a frame that is not held as a whole."""
        free = self.canvas.mask.min((2, 3, 4)) <= 0
        return (free & (self.time(after) < self.time(t))).any(1)

    def place(self, x: Float[Array, "b f h w c"], t: Array) -> Float[Array, "b f h w c"]:
        """`x` at `t`, with frames that have not begun, or never move, at their level."""
        if self.level is None or self.start is None:
            return x
        waits = (self.level < 1) & (self.time(t) >= self.level)
        return jnp.where(over_frames(waits, x) > 0, self.start, x)

    def finish(self, latents: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Latents at the end: what is held is exactly what is known."""
        held = self.canvas.mask > 0
        if self.level is not None:
            held |= over_frames(self.level == 0, latents) > 0
        return jnp.where(held, self.canvas.known, latents)


def draw_canvas(
    diffusion: DiffusionConfig, x0: Float[Array, "b f h w c"], is_image: Bool[Array, " b"], keys: jax.Array
) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w 1"]]:
    """What training shows of some videos: (known latents, mask). A row draws from its own key; of stills nothing is known."""
    _, *sizes, _ = x0.shape
    size = (sizes[0], sizes[1], sizes[2])
    patterns = [PATTERNS[name] for name in diffusion.known_patterns]
    counts = jnp.asarray(diffusion.known_frames)

    def draw(key: jax.Array, is_image: Array) -> Array:
        some, choice, own, rest = jax.random.split(key, 4)
        drawn = jax.random.bernoulli(some, diffusion.known_rate) & ~is_image
        masks = jnp.stack([pattern(own, size, counts) for pattern in patterns])
        mask = masks[jax.random.randint(choice, (), 0, len(patterns))]
        # Something is left to generate.
        frame = jnp.arange(size[0]) == jax.random.randint(rest, (), 0, size[0])
        return drawn & mask & ~(mask.all() & frame[:, None, None])

    mask = jax.vmap(draw)(keys, is_image)[..., None].astype(x0.dtype)
    return mask * x0, mask


def _first(key: jax.Array, size: tuple[int, int, int], counts: Array) -> Bool[Array, "f h w"]:
    return _frames(jnp.arange(size[0]) < jax.random.choice(key, counts), size)


def _last(key: jax.Array, size: tuple[int, int, int], counts: Array) -> Bool[Array, "f h w"]:
    return _frames(jnp.arange(size[0]) >= size[0] - jax.random.choice(key, counts), size)


def _ends(key: jax.Array, size: tuple[int, int, int], counts: Array) -> Bool[Array, "f h w"]:
    head, tail = jax.random.split(key)
    return _first(head, size, counts) | _last(tail, size, counts)


def _scattered(key: jax.Array, size: tuple[int, int, int], counts: Array) -> Bool[Array, "f h w"]:
    share, each = jax.random.split(key)
    return _frames(jax.random.uniform(each, size[:1]) < jax.random.uniform(share), size)


def _gap(key: jax.Array, size: tuple[int, int, int], counts: Array) -> Bool[Array, "f h w"]:
    return _frames(~_run(key, size[0]), size)


def _box(key: jax.Array, size: tuple[int, int, int], counts: Array) -> Bool[Array, "f h w"]:
    """A box is to be generated, or all around one, in all frames or some; what lies before and after is known, or not."""
    rows, columns, frames, kind = jax.random.split(key, 4)
    box = _run(rows, size[1])[:, None] & _run(columns, size[2])
    outside, always, around = jax.random.bernoulli(kind, 0.5, (3,))
    inside = jnp.broadcast_to(jnp.where(outside, ~box, box), size)
    span = _frames(_run(frames, size[0]) | always, size)
    return jnp.where(span, inside, around)


def _run(key: jax.Array, length: int) -> Bool[Array, " n"]:
    """A run of places, any number of them, anywhere."""
    most, where = jax.random.split(key)
    count = jax.random.randint(most, (), 1, length + 1)
    start = jax.random.randint(where, (), 0, length - count + 1)
    place = jnp.arange(length)
    return (place >= start) & (place < start + count)


def _frames(frames: Bool[Array, " f"], size: tuple[int, int, int]) -> Bool[Array, "f h w"]:
    return jnp.broadcast_to(frames[:, None, None], size)


PATTERNS: dict[CanvasPattern, Callable[[jax.Array, tuple[int, int, int], Array], Bool[Array, "f h w"]]] = {
    "first": _first,
    "last": _last,
    "ends": _ends,
    "frames": _scattered,
    "gap": _gap,
    "box": _box,
}
