"""A whole small world: clips of noise, an autoencoder of nothing, latents, and a config of stage 2 that takes seconds."""

import dataclasses
import json

import numpy as np

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import Autoencoder
from walt.config import to_config_dict, to_json
from walt.data import media, records
from walt.experiment import latents
from walt.generation.bundle import Bundle, Component, write_bundle
from walt.training.module import Functional

SIZE = (5, 16, 16)
CONFIG = """
from walt.config import apply_overrides, load


def get_config(variant=""):
    return apply_overrides(load("t2v/atari:mini"), {overrides!r})
"""


def tiny_autoencoder():
    config = AutoencoderConfig(
        latent_channels=2,
        base_channels=2,
        channel_multipliers=(1, 1),
        res_blocks=1,
        mid_blocks=0,
        strides=((4, 2),),
        temporal_kernels=(1, 3),
        patchify=2,
        groups=1,
    )
    random, model = np.random.default_rng(0), Functional(lambda rngs: Autoencoder(config, rngs))
    params = mapped(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), model.abstract_params)
    statistics = {"latent_mean": np.float32([0.1, -0.2]), "latent_std": np.float32([0.5, 2.0])}
    return Bundle({"autoencoder": Component(json.loads(to_json(to_config_dict(config))), params, statistics)})


def mapped(function, tree):
    return {name: mapped(function, leaf) if isinstance(leaf, dict) else function(leaf) for name, leaf in tree.items()}


def make(folder):
    """Writes clips, an autoencoder, latents and `config.py`, which trains on them, into a folder, and returns it."""
    random = np.random.default_rng(0)
    with records.new_dataset(folder / "clips") as directory:
        splits = {}
        for split, count in (("train", 16), ("heldout", 8)):
            with records.RecordWriter(directory, split) as writer:
                for index in range(count):
                    label = ("red", "blue")[index % 2]
                    clip = media.encode_clip(random.integers(0, 256, (*SIZE, 3), np.uint8))
                    captions = [f"a {label} ball", f"{label} noise"]
                    writer.write(
                        {"id": f"{split}-{index}", "clip": clip, "captions": captions, "label": label, "fps": 8.0}
                    )
                splits[split] = writer.close()
        manifest = records.Manifest("noise", splits, {"clip": (*SIZE, 3)}, 8.0, 0, {}, {})
        records.write_manifest(directory, manifest)
    write_bundle(tiny_autoencoder(), folder / "autoencoder")
    shape = latents.prepare(folder / "autoencoder", folder / "clips", folder / "latents").shapes["video"]
    overrides = {
        "data.path": str(folder / "latents"),
        "data.batch_size": "8",
        "autoencoder_path": str(folder / "autoencoder"),
        "transformer.latent_shape": ",".join(map(str, shape[:3])),
        "transformer.in_channels": "5",
        "diffusion.known_frames": "(1,)",
        "transformer.out_channels": "2",
        "transformer.width": "16",
        "transformer.depth": "2",
        "transformer.heads": "2",
        "transformer.spatial_window": "1,2,2",
        "transformer.spacetime_window": f"{shape[0]},2,2",
        "transformer.text_width": "8",
        "text.width": "8",
        "text.heads": "2",
        "text.head_width": "4",
        "text.mlp_width": "8",
        "text.vocab_size": "40",
        "sampler.steps": "2",
        "training.log_every": "1",
        "training.checkpoint_every": "20",
        "training.optimizer.warmup_steps": "2",
    }
    (folder / "config.py").write_text(CONFIG.format(overrides=overrides))
    return folder


def with_bad_records(folder, bad):
    """A copy of the latents in which those records hold nothing that can be used; returns its path."""
    source = records.RecordSource(folder / "latents")
    manifest = source.manifest
    with records.new_dataset(folder / "bad_latents") as directory:
        splits = {}
        for split in manifest.splits:
            source = records.RecordSource(folder / "latents", split)
            with records.RecordWriter(directory, split) as writer:
                for index in range(len(source)):
                    harm = {"video": b"broken", "images": b"broken"} if split == "train" and index in bad else {}
                    writer.write(source[index] | harm)
                splits[split] = writer.close()
        records.write_manifest(directory, dataclasses.replace(manifest, splits=splits))
    return folder / "bad_latents"
