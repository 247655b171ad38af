"""Structural similarity against the library's."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from walt.autoencoder.ssim import ssim


@pytest.mark.parametrize(("height", "width"), [(11, 11), (24, 40), (64, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_equals_scikit_image(height, width, noise):
    rng = np.random.default_rng(0)
    a = rng.uniform(size=(2, 3, height, width, 3)).astype(np.float32)
    b = np.clip(a + noise * rng.normal(size=a.shape), 0, 1).astype(np.float32)
    expected = [
        structural_similarity(
            x, y, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in zip(a.reshape(6, height, width, 3), b.reshape(6, height, width, 3), strict=True)
    ]
    np.testing.assert_allclose(ssim(jnp.asarray(a), jnp.asarray(b)).reshape(6), expected, atol=1e-5)


def test_frames_below_the_window_are_refused():
    small = jnp.zeros((1, 10, 16, 3))
    with pytest.raises(ValueError, match="at least 11x11, got 10x16"):
        ssim(small, small)
