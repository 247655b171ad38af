"""Plans of every program of an experiment: its train step, its sampler, its autoencoder's two halves, as `Pipeline` places them on a mesh."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from walt.autoencoder.convolution import SUBLANES
from walt.config import ConfigError, nearest, to_config_dict, to_json
from walt.diffusion.flops import sampling_flops
from walt.diffusion.text_to_latents import Text
from walt.experiment.config import AutoencoderExperiment, DiffusionExperiment, ExperimentConfig
from walt.experiment.planning import KINDS, changes_that_save_memory, check_autoencoder, more_fsdp, plan_training
from walt.generation import programs
from walt.generation.given import Given
from walt.parallel.mesh import BATCH_AXES, batch_sharding, batch_shards, make_mesh
from walt.parallel.rules import ParameterAxes, parameter_shardings
from walt.planning.plan import PROGRAMS, Plan, Work, make_plan
from walt.planning.topology import Topology
from walt.training.flops import product_flops
from walt.training.module import Functional
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

ROWS = 16
"""Videos that are sampled at a time, rounded up to a multiple of the parts that a mesh divides them into: the default of `Pipeline.generate`."""
TEXT = "the text encoder is a program of its own, which runs once per prompt: its weights are in the memory, its work is not counted"


def plan_program(
    experiment: ExperimentConfig, topology: Topology, what: str = "train", rows: int | None = None
) -> Plan:
    """The plan of one of PROGRAMS with the config's mesh.

    Args:
      rows: videos of one run, by default ROWS, or SUBLANES a device for the autoencoder; of a train step they are the config's.

    Raises:
      ConfigError: before anything is compiled: there is no such program, or it does not divide over the devices.
    """
    if what not in PROGRAMS:
        raise ConfigError(f"what={what!r} is none of {', '.join(PROGRAMS)}{nearest(what, PROGRAMS)}")
    if what == "train":
        if rows is not None:
            raise ConfigError("the rows of a train step are those of its batch: set --config.data.batch_size")
        return plan_training(experiment, topology)
    stage = "autoencoder" if what in ("encode", "decode") else "diffusion"
    if experiment.stage != stage:
        raise ConfigError(
            f"what={what!r} is of a config of the stage {stage!r}, such as {'autoencoder/t2v_128' if stage == 'autoencoder' else 't2v/base_3b'}; "
            f"this one is of {experiment.stage!r}"
        )
    mesh = make_mesh(experiment.training.mesh, topology.devices())
    shards = batch_shards(mesh)
    if rows is None:
        rows = SUBLANES * shards if stage == "autoencoder" else -(-ROWS // shards) * shards
    if rows < 1 or rows % shards:
        raise ConfigError(
            f"batch_size is {rows}, but the mesh divides it into {shards} parts: make it a multiple of {shards}"
        )
    if isinstance(experiment, DiffusionExperiment):
        lowered, work = lower_sampler(experiment, mesh, rows)
    else:
        lowered, work = lower_half(experiment, mesh, rows, what)
    return make_plan(lowered, work, topology=topology, mesh=dict(mesh.shape), kinds=KINDS)


def lower_sampler(experiment: DiffusionExperiment, mesh: Mesh, rows: int) -> tuple[Any, Work]:
    """All steps of the config's sampler, from noise and prompts to latents, from shapes alone."""
    transformer, text, diffusion = experiment.transformer, experiment.text, experiment.diffusion
    check_mesh(transformer, mesh.shape)
    by_row = batch_sharding(mesh)

    def of_rows(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=by_row)

    prompts: Any = None
    if text is not None:
        length = diffusion.caption_length
        embeddings, mask = of_rows(length, text.width), of_rows(length, dtype=jnp.bool_)
        prompts = Text(embeddings, mask)  # type: ignore[arg-type]
    elif transformer.num_classes is not None:
        prompts = of_rows(dtype=jnp.int32)
    given = Given()
    if (factor := transformer.low_resolution) is not None:
        frames, height, width = transformer.latent_shape
        low: Any = of_rows(frames, height // factor, width // factor, transformer.out_channels)
        given = Given(low)
    strength, sampler = None, experiment.sampler
    if prompts is not None and sampler.guidance != 1:  # as `Pipeline` has it: one program for every strength
        strength = jax.ShapeDtypeStruct((), jnp.float32)
        sampler = dataclasses.replace(sampler, guidance=0.0)
    weights = abstract_weights(programs.denoiser(transformer, text), mesh, PARAMETER_AXES)
    keys = of_rows(dtype=jax.eval_shape(jax.random.key, 0).dtype)
    config = programs.GeneratorConfig(transformer, text, diffusion)
    with jax.set_mesh(mesh):
        lowered = programs.sample_latents.lower(config, sampler, weights, prompts, keys, strength, None, given)
    flops = sampling_flops(transformer, text, diffusion.caption_length, experiment.sampler)
    return lowered, Work("sample", rows, math.prod(transformer.grid), flops, assumptions=(TEXT,) if text else ())


def lower_half(experiment: AutoencoderExperiment, mesh: Mesh, rows: int, what: str) -> tuple[Any, Work]:
    """The encoder or the decoder, between pixels of the config's clips and normalised latents, from shapes alone."""
    check_autoencoder(experiment, mesh.shape)
    assert experiment.clip_size is not None  # as has been checked
    config, by_row = experiment.autoencoder, batch_sharding(mesh)
    model = programs.autoencoder(config)
    video, latents = (*experiment.clip_size, 3), config.latent_shape(*experiment.clip_size)
    shape, dtype = (video, jnp.uint8) if what == "encode" else (latents, jnp.float32)
    program = programs.encode if what == "encode" else programs.decode
    with jax.set_mesh(mesh):
        inputs = jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=by_row)
        lowered = program.lower(config, abstract_weights(model, mesh), inputs)
    weights, one = (model.abstract_params, model.abstract_extra), jax.ShapeDtypeStruct((1, *shape), dtype)
    flops = product_flops(lambda *arguments: program(config, *arguments), weights, one)
    return lowered, Work(what, rows, math.prod(latents[:3]), flops)


def abstract_weights(model: Functional[Any], mesh: Mesh, axes: ParameterAxes = ()) -> programs.Weights:
    """Shapes of (parameters, other variables) where `walt.generation.parts.place_weights` puts them."""
    tree = (model.abstract_params, model.abstract_extra)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        parameter_shardings(tree, mesh, axes),
    )


def fitting(
    experiment: ExperimentConfig, topology: Topology, plan: Plan, rows: int | None = None
) -> tuple[list[str], Plan] | None:
    """The first of the changes that save memory, each on top of those before it, with which the program fits: (as flags, its plan). None
    if none does."""
    flags: list[str] = []
    for words, changed, fewer in _changes(experiment, plan, rows):
        flags = [flag for flag in flags if flag.split("=")[0] not in words] + [words]
        found = plan_program(changed, topology, plan.what, fewer)
        if found.fits:
            return flags, found
    return None


def checksum(experiment: ExperimentConfig) -> str:
    """SHA-256 of the resolved config: by it a plan that was written down is told from one of the present config."""
    return hashlib.sha256(to_json(to_config_dict(experiment)).encode()).hexdigest()


def _changes(
    experiment: ExperimentConfig, plan: Plan, rows: int | None
) -> Iterator[tuple[str, ExperimentConfig, int | None]]:
    if plan.what == "train":
        yield from ((words, changed, None) for words, changed in changes_that_save_memory(experiment, plan.mesh))
        return
    if (found := more_fsdp(experiment, plan.mesh)) is not None:
        words, experiment = found
        yield words, experiment, rows
    fewer, shards = plan.rows // 2, math.prod(plan.mesh[axis] for axis in BATCH_AXES)
    while fewer and fewer % shards == 0:
        yield f"--batch_size={fewer}", experiment, fewer
        fewer //= 2
