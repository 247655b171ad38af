"""From a run on images to one on videos, by the commands and configs that the package ships."""

import dataclasses

import jax
import numpy as np

import walt
from walt import convert, experiment
from walt.autoencoder import Autoencoder
from walt.config import load, to_config_dict
from walt.experiment import InitRules
from walt.experiment.weights import initial_weights
from walt.generation.bundle import Bundle, Component, write_bundle
from walt.generation.sources import open_bundle
from walt.training.module import Functional


def test_the_shipped_image_autoencoder_inflates_to_the_shipped_video_ones(tmp_path):
    image = experiment.parse(load("autoencoder/images:mini")).autoencoder
    model = Functional(lambda rngs: Autoencoder(image, rngs))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(0.1 * rng.normal(size=leaf.shape)), model.abstract_params)
    extra = {"latent_mean": np.full(8, 0.1, np.float32), "latent_std": np.full(8, 2.0, np.float32)}
    component = Component(to_config_dict(image).to_dict(), params, extra)
    write_bundle(Bundle({"autoencoder": component}), tmp_path / "images")

    made = [f"--workdir={tmp_path / 'images'}", f"--output={tmp_path / 'video'}", "--config=autoencoder/k600:mini"]
    convert.main(["walt convert", "inflate", *made])

    picture = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    still, moving = (walt.load(tmp_path / name).encode(picture) for name in ("images", "video"))
    np.testing.assert_allclose(still, moving, atol=1e-4)
    video = experiment.parse(load("autoencoder/k600:mini")).autoencoder
    abstract = Functional(lambda rngs: Autoencoder(video, rngs)).abstract_params
    start = initial_weights(InitRules(path=str(tmp_path / "video")), {"autoencoder": abstract})["autoencoder"]
    stored = open_bundle(tmp_path / "video").components["autoencoder"].params
    jax.tree.map(np.testing.assert_array_equal, start, stored)


def test_the_published_image_autoencoder_differs_from_the_video_ones_in_time_alone():
    image, video = (experiment.parse(load(f"autoencoder/{name}")).autoencoder for name in ("images", "k600"))
    timeless = {"temporal_kernels": (1, 1, 1, 1), "strides": ((1, 2),) * 3}
    assert image == dataclasses.replace(video, **timeless)
