"""Shapes of the autoencoder that cannot be built."""

import pytest

from walt.autoencoder.config import AutoencoderConfig
from walt.config import ConfigError


@pytest.mark.parametrize("name", ["latent_channels", "base_channels", "res_blocks", "down_kernel", "groups"])
def test_sizes_are_positive(name):
    with pytest.raises(ConfigError, match=rf"autoencoder\.{name} must be at least 1, got 0"):
        AutoencoderConfig(**{name: 0})


def test_middle_blocks_may_be_left_out():
    assert AutoencoderConfig(mid_blocks=0).mid_blocks == 0
    with pytest.raises(ConfigError, match=r"autoencoder\.mid_blocks must be 0 or more, got -1"):
        AutoencoderConfig(mid_blocks=-1)
