"""The first stage: a causal video autoencoder that turns images and video into one latent space."""

from walt.autoencoder.config import AutoencoderConfig, AutoencoderLossConfig
from walt.autoencoder.model import Autoencoder, reconstruct, to_float, to_uint8
from walt.autoencoder.streaming import stream_decode, stream_encode
from walt.autoencoder.task import AutoencoderTask, latent_statistics
from walt.autoencoder.tiling import Tiling

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderLossConfig",
    "AutoencoderTask",
    "Tiling",
    "latent_statistics",
    "reconstruct",
    "stream_decode",
    "stream_encode",
    "to_float",
    "to_uint8",
]
