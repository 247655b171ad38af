"""Parameter counts of the published models, from abstract shapes: nothing is allocated."""

import pytest

from walt.config import ConfigError, from_config_dict, to_config_dict
from walt.training.module import Functional, count_parameters
from walt.transformer import Transformer, TransformerConfig, transformer_flops

UCF101 = {"latent_shape": (5, 16, 16), "in_channels": 16, "out_channels": 8, "num_classes": 101}
LARGE = {**UCF101, "width": 1024, "depth": 24, "heads": 16}
T2V = {"text_width": 2048, "heads": 16}
FULL = {  # attention over the whole frame, nothing else
    "spatial_window": (1, 16, 16),
    "spacetime_window": None,
    "self_conditioning": False,
    "qk_norm": False,
    "relative_bias": False,
}
WIDE = {"spatial_window": (1, 16, 28), "spacetime_window": (5, 8, 14)}  # for 9:16

PUBLISHED = {
    "UCF-101 L, LoRA 2": (LARGE, 313e6),
    "UCF-101 L, LoRA 4": ({**LARGE, "lora_rank": 4}, 314e6),
    "UCF-101 L, LoRA 16": ({**LARGE, "lora_rank": 16}, 316e6),
    "UCF-101 L, LoRA 64": ({**LARGE, "lora_rank": 64}, 324e6),
    "UCF-101 L, LoRA 256": ({**LARGE, "lora_rank": 256}, 357e6),
    "UCF-101 L, separate": ({**LARGE, "adaln": "separate"}, 458e6),
    "UCF-101 XL": ({**UCF101, "width": 1152, "depth": 28, "heads": 16}, 460e6),
    "ImageNet": (
        {
            **LARGE,
            "latent_shape": (1, 32, 32),
            "num_classes": 1000,
            "adaln": "separate",
            "spatial_window": (1, 32, 32),
            "spacetime_window": None,
        },
        460e6,
    ),
    "T2V 2x2x": (
        {
            **T2V,
            **WIDE,
            "latent_shape": (5, 64, 112),
            "in_channels": 24,
            "low_resolution": 2,
            "scalars": ("low_resolution_time",),
            "out_channels": 8,
            "width": 1024,
            "depth": 24,
            "patch": 4,
        },
        419e6,
    ),
    "T2V 2x": (
        {
            **T2V,
            **WIDE,
            "latent_shape": (5, 32, 56),
            "in_channels": 24,
            "low_resolution": 2,
            "scalars": ("low_resolution_time",),
            "out_channels": 8,
            "width": 1408,
            "depth": 40,
            "patch": 2,
        },
        1.3e9,
    ),
    "T2V base": (
        {
            **T2V,
            "latent_shape": (5, 16, 16),
            "in_channels": 25,
            "canvas": True,
            "out_channels": 8,
            "width": 1920,
            "depth": 52,
        },
        3.1e9,
    ),
    "DiT-XL/2": (
        {
            "latent_shape": (1, 32, 32),
            "in_channels": 4,
            "out_channels": 4,
            "width": 1152,
            "depth": 28,
            "heads": 16,
            "patch": 2,
            "num_classes": 1000,
            "adaln": "separate",
            "position": "sincos",
            **FULL,
        },
        675e6,
    ),
    "U-ViT-H/2": (
        {
            "latent_shape": (1, 32, 32),
            "in_channels": 4,
            "out_channels": 4,
            "width": 1152,
            "depth": 29,
            "heads": 16,
            "patch": 2,
            "num_classes": 1000,
            "adaln": "none",
            "long_skips": True,
            **FULL,
        },
        501e6,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_within_one_percent(name):
    fields, published = PUBLISHED[name]
    config = TransformerConfig(**fields)
    model = Functional(lambda rngs: Transformer(config, rngs))
    assert count_parameters(model.abstract_params) == pytest.approx(published, rel=0.01)


def test_flops_are_two_per_parameter_and_token_plus_attention():
    config = TransformerConfig(**LARGE)
    tokens, width = 5 * 16 * 16, 1024
    attention = 4 * tokens * width * 12 * (256 + 320)
    assert transformer_flops(config) == pytest.approx(2 * tokens * 12 * width**2 * 24 + attention, rel=0.01)


def test_a_config_survives_its_dictionary():
    config = TransformerConfig(**PUBLISHED["U-ViT-H/2"][0])
    assert from_config_dict(TransformerConfig, to_config_dict(config)) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"patch": 3}, "patch 3 must divide"),
        ({"heads": 15}, "heads 15 must divide width 1024"),
        ({"depth": 23}, "depth must be even"),
        ({"spatial_window": (2, 4, 4)}, "spatial_window must span one frame beside"),
        ({"spacetime_window": (0, 4, 4)}, "spacetime_window must be three positive"),
        ({"latent_shape": (5, 16)}, "latent_shape must be three"),
        ({"in_channels": 8}, "in_channels is 8, expected 16: 8 noisy, 8 of self-conditioning"),
        ({"scalars": ("size",)}, "unknown 'size'"),
        ({"low_resolution": 2, "in_channels": 24}, "'low_resolution_time' where low_resolution is set"),
        ({"low_resolution": 3, "in_channels": 24, "scalars": ("low_resolution_time",)}, "low_resolution 3 must divide"),
        ({"width": 0}, "width must be at least 1"),
        ({"adaln": "some"}, "adaln must be one of shared, lora, separate, none"),
        ({"adaln": "none"}, "needs spacetime_window=None"),
        ({"position": "rotary"}, "position must be one of"),
        ({"long_skips": True}, "makes 12 units"),
        ({"width": 1026, "heads": 2, "position": "sincos"}, "multiple of 4"),
        ({"remat": "some"}, "remat must be one of"),
        ({"dtype": "float16"}, "dtype must be one of"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**{**LARGE, **change})
