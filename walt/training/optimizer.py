"""The optimiser without its learning rate, and the learning rate as a function of the step.

They are apart because the step multiplies them itself: the rate that is logged is the rate that was used, also after a
skipped update. The rate is computed on the host and given to the step, so that one compiled step serves any schedule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from walt.parallel.rules import path_name
from walt.training.config import OptimizerConfig

__all__ = ["OptimizerConfig", "make_optimizer", "make_schedule"]


def make_schedule(config: OptimizerConfig, num_steps: int) -> Callable[[int], float]:
    """Learning rate by step (0 is the first). Step 0 of a warm-up of w already moves: rate 1/(w+1) of the peak."""
    peak, warmup, floor = config.learning_rate, config.warmup_steps, config.final_fraction

    def learning_rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return peak
        done = min((step - warmup) / (num_steps - warmup), 1.0)
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

    return learning_rate


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients → the direction to be subtracted, scaled by the learning rate, from the parameters (weight decay
    included).
    """
    if config.name == "adafactor":
        # Shazeer & Stern, 2018, without the parameter scale: rates then mean the same as for AdamW.
        scale = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
        scale += [optax.ema(config.b1, debias=False)] if config.b1 else []
    else:
        scale = [optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)]
    # Always in the chain, so that a run can go on with another weight decay, none included.
    scale += [optax.add_decayed_weights(config.weight_decay, mask=lambda params: decayed(config, params))]
    return optax.chain(*scale)


def decayed(config: OptimizerConfig, params: Any) -> Any:
    """A tree of bools like `params`: which of them weight decay applies to."""
    pattern = re.compile(f"(?:{config.decay_pattern})$")
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(pattern.search(path_name(path))), params)
