"""Which axes of the transformer's parameters are which, and what a mesh must divide.

The contract of each kind of layer, along each mesh axis (`tests/transformer/test_sharding.py` counts the collectives of compiled programs):

* `slice`, `data`: none; gradients are summed once a step. `fsdp`: every layer gathers its weights, and scatters their gradients; activations
  stay where they are.
* `context` divides the rows of a frame. A layer whose windows divide over it attends within them, after moving the tokens to their windows (nothing
  moves where windows are whole bands of rows). A layer whose windows do not (one window is the frame) keeps its queries and gathers keys and values.
* `tensor` divides heads and hidden features: one sum of activations behind attention, cross-attention and MLP each, and small ones for the norms of
  heads, whose statistics are products over the whole width.
"""

from __future__ import annotations

from collections.abc import Mapping

from walt.config import ConfigError
from walt.parallel.rules import ParameterAxes
from walt.transformer.config import TransformerConfig
from walt.transformer.windows import Windows

_LAYER = r"blocks/(?:spatial|spacetime)/"
PARAMETER_AXES: ParameterAxes = (  # the first axis of a block's parameters is that of the stack
    (_LAYER + r"(?:cross_)?attention/(?:query|key|value)/kernel", (None, "embed", "heads")),
    (_LAYER + r"(?:cross_)?attention/(?:query|key|value)/bias", (None, "heads")),
    (_LAYER + r"(?:cross_)?attention/out/kernel", (None, "heads", "embed")),
    (_LAYER + r"attention/relative_bias/table", (None, "heads", None, None, None)),
    (_LAYER + r"mlp/up/kernel", (None, "embed", "mlp")),
    (_LAYER + r"mlp/up/bias", (None, "mlp")),
    (_LAYER + r"mlp/down/kernel", (None, "mlp", "embed")),
    (_LAYER + r"modulation/own/kernel", (None, "embed", None)),
    (_LAYER + r"modulation/down/kernel", (None, "embed", None)),
    (_LAYER + r"modulation/up/kernel", (None, None, "embed")),
    (r"blocks/join/kernel", (None, "embed", None)),
)


def check_mesh(config: TransformerConfig, sizes: Mapping[str, int]) -> None:
    """Raises `ConfigError` naming what does not divide over a mesh of these axis sizes."""
    tensor, context, fsdp = sizes["tensor"], sizes["context"], sizes["fsdp"]
    if config.heads % tensor:
        raise ConfigError(f"mesh.tensor is {tensor}, which does not divide transformer.heads {config.heads}")
    if config.width % fsdp:
        raise ConfigError(f"mesh.fsdp is {fsdp}, which does not divide transformer.width {config.width}")
    if context == 1:
        return
    if config.adaln == "none":
        raise ConfigError(
            'mesh.context must be 1 for transformer.adaln "none": its tokens lie in one row, which is one window'
        )
    if config.grid[1] % context:
        raise ConfigError(
            f"mesh.context is {context}, which does not divide the {config.grid[1]} rows of tokens of a frame ({config.latent_shape} in patches of "
            f"{config.patch})"
        )
    for window in (config.spatial_window, config.spacetime_window):
        if window is None:
            continue
        windows = Windows(config.grid, window)
        if windows.divided_over(context) is None:
            raise ConfigError(
                f"mesh.context is {context}, which divides neither the {windows.number} windows {window} of a layer nor the {windows.tokens} tokens of one"
            )
