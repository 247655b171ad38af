"""What sampling costs, counted from the configs as training is (`DiffusionTask.row_cost`)."""

from __future__ import annotations

from walt.diffusion.configs import SamplerConfig
from walt.text.config import TextEncoderConfig
from walt.transformer.config import TransformerConfig
from walt.transformer.flops import transformer_flops


def evaluations(sampler: SamplerConfig) -> int:
    """How often a sampler asks the network: once a step, twice with Heun's solvers but for the last."""
    return sampler.steps * 2 - 1 if sampler.solver in ("heun", "flow_heun") else sampler.steps


def sampling_flops(
    transformer: TransformerConfig, text: TextEncoderConfig | None, caption_length: int, sampler: SamplerConfig
) -> float:
    """FLOPs of one video: every evaluation, twice with guidance. The text encoder, which runs once, is not counted."""
    reads = text is not None or transformer.num_classes is not None
    branches = 2 if reads and sampler.guidance != 1 else 1
    forward = transformer_flops(transformer, 0 if text is None else caption_length)
    return branches * evaluations(sampler) * forward
