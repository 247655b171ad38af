"""Videos without a first frame: a denoiser of F latent frames on a ring of any number of them.

The ring is seen through a window of F frames at every place, and what a frame is predicted to be is the mean over the windows it lies in. Where the ring
begins makes no difference, so a ring of rolled noise gives rolled latents. The first frame of a window does not count: the autoencoder makes it of one
picture, where a frame of the ring stands for several, so there it is context alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.diffusion.conditions import Conditions


def windows(x: Float[Array, "b l ..."], frames: int) -> Float[Array, "bl f ..."]:
    """A window of so many frames from every frame of the ring on; rows of one ring follow each other."""
    length = x.shape[1]
    places = (jnp.arange(length)[:, None] + jnp.arange(frames)) % length
    return x[:, places].reshape(-1, frames, *x.shape[2:])


def merged(values: Float[Array, "bl f ..."], length: int) -> Float[Array, "b l ..."]:
    """For every frame of the ring the mean over its places in windows, but for the first."""
    frames = values.shape[1]
    values = values.reshape(-1, length, *values.shape[1:])
    if frames == 1:
        return values[:, :, 0]
    return jnp.stack([jnp.roll(values[:, :, place], place, axis=1) for place in range(1, frames)]).mean(0)


def windowed(conditions: Conditions, frames: int, length: int) -> Conditions:
    """Conditions of the ring for its windows."""
    text = conditions.text
    if text is not None:
        embeddings, mask, drop = (jnp.repeat(x, length, axis=0) for x in (text.embeddings, text.mask, text.drop))
        text = text._replace(
            embeddings=embeddings, mask=mask, drop=drop, caption_index=windows(text.caption_index, frames)
        )
    others = jax.tree.map(lambda x: windows(x, frames), conditions._replace(text=None))
    return others._replace(text=text)
