"""Every shipped config resolves, with and without `:mini`, to exactly the text in tests/golden.

After an intended change: `launch/test.sh tests/test_shipped_configs.py --update-golden`, and review the diff.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from walt import config, experiment
from walt.autoencoder import Autoencoder
from walt.experiment.stage2 import diffusion_task
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import parameter_shardings, replicated_share
from walt.training.module import Functional, count_parameters
from walt.transformer.sharding import PARAMETER_AXES

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = [f"{name}{variant}" for name in config.shipped_configs() for variant in ("", ":mini")]


def golden_file(name: str) -> Path:
    return GOLDEN / f"{name.replace('/', '.').replace(':', '-')}.txt"


def test_there_are_configs():
    assert {"autoencoder/atari", "t2v/atari"} <= set(config.shipped_configs())


@pytest.mark.parametrize("name", VARIANTS)
def test_resolves_to_its_golden_file(name, request):
    resolved = experiment.parse(config.load(name))
    text = config.to_json(config.to_config_dict(resolved))
    again = experiment.parse(config.from_json(text))
    assert again == resolved, "a checkpoint could not restore this config"
    file = golden_file(name)
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.exists(), f"run with --update-golden to write {file.name}"
    changes = config.diff(config.from_json(file.read_text()), config.from_json(text))
    assert file.read_text() == text, f"{name} changed; if intended run with --update-golden: {changes}"


@pytest.mark.parametrize("name", VARIANTS)
def test_unknown_keys_are_refused_in_every_section(name):
    loaded = config.load(name)
    sections = [loaded, *(value for value in loaded.values() if isinstance(value, type(loaded)))]
    for section in sections:
        with section.unlocked():
            section.no_such_key = 1
        with pytest.raises(config.ConfigError, match="no_such_key"):
            experiment.parse(loaded)
        with section.unlocked():
            del section["no_such_key"]


@pytest.mark.parametrize("name", config.shipped_configs())
def test_unknown_variant_is_refused(name):
    with pytest.raises(config.ConfigError, match="no-such-variant"):
        config.load(f"{name}:no-such-variant")


def test_no_golden_file_is_left_over():
    assert {file.name for file in GOLDEN.glob("*.txt")} == {golden_file(name).name for name in VARIANTS}


def test_an_unknown_stage_is_refused():
    loaded = config.load("t2v/atari")
    loaded.stage = "difusion"
    with pytest.raises(config.ConfigError, match="did you mean 'diffusion'"):
        experiment.parse(loaded)


def test_experiment_configs_are_frozen():
    for stage in experiment.STAGES.values():
        assert stage.__dataclass_params__.frozen and dataclasses.fields(stage)


AUTOENCODERS = [name for name in VARIANTS if name.startswith("autoencoder/")]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_decoding_mirrors_encoding(name):
    """From abstract shapes: nothing is allocated, whatever the size."""
    shape = experiment.parse(config.load(name)).autoencoder
    model = Functional(lambda rngs: Autoencoder(shape, rngs))
    frames = 1 + 2 * shape.time_factor
    video = jax.ShapeDtypeStruct((2, frames, 3 * shape.space_factor, 2 * shape.space_factor, 3), jnp.float32)
    weights = model.abstract_params, model.abstract_extra
    latents = jax.eval_shape(lambda p, e, x: model.bind(p, e).encode(x), *weights, video)
    assert latents.shape == (2, *shape.latent_shape(*video.shape[1:4]))
    decoded = jax.eval_shape(lambda p, e, x: model.bind(p, e).decode(x), *weights, latents)
    assert (decoded.shape, decoded.dtype) == (video.shape, jnp.float32)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("autoencoder/imagenet", 103),
        ("autoencoder/ucf101", 370),
        ("autoencoder/t2v_512x896", 370),
        ("classes/ucf101_l", 313),
        ("classes/ucf101_xl", 460),
        ("classes/imagenet", 460),
        ("classes/dit_xl2", 675),
        ("classes/uvit_h2", 501),
        ("frames/k600", 313),
        ("t2v/base_3b", 3100),
        ("t2v/super_2x", 1300),
        ("t2v/super_2x2x", 419),
    ],
)
def test_published_sizes(name, millions):
    found = experiment.parse(config.load(name))
    if found.stage == "diffusion":
        model = diffusion_task(found).denoiser
    else:
        model = Functional(lambda rngs: Autoencoder(found.autoencoder, rngs))
    assert count_parameters(model.abstract_params) == pytest.approx(millions * 1e6, rel=0.01)
    # What every device of a mesh would hold whole: vectors and small tables.
    shardings = parameter_shardings(model.abstract_params, make_mesh(MeshConfig(data=1, fsdp=8)), PARAMETER_AXES)
    assert replicated_share(model.abstract_params, shardings) < 0.02


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith("autoencoder/")])
def test_every_transformer_takes_a_training_step(name):
    """From abstract shapes: losses of a batch as the task specifies it, one per row."""
    task = diffusion_task(experiment.parse(config.load(name)))
    batch = {entry: jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype) for entry, spec in task.batch_spec().items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, extra = jax.eval_shape(task.init, key)
    losses = jax.eval_shape(task.row_losses, params["model"], extra, batch, key)
    assert losses.shape == (2,) and task.row_cost().flops > 0
