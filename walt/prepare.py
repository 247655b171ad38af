"""Make a data set on disk; each recipe has flags of its own (`walt prepare RECIPE --help`).

    walt prepare atari        --output=data/atari                      record footage of Atari games
    walt prepare video_folder --output=data/mine --input=footage       your own videos, with captions beside them
    walt prepare tfds         --output=data/ucf --directory=DIR        a data set of tensorflow-datasets
    walt prepare film         --output=data/film                       shots of Big Buck Bunny, which it downloads
    walt prepare latents      --output=data/latents --input=data/atari --autoencoder=BUNDLE
    walt prepare text         --output=data/embedded --input=data/latents --encoder=BUNDLE

A finished folder is left as it is if the same is asked for again, and never overwritten.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence

from walt import command
from walt.data.recipes.common import option

# recipe: (module, dataclass of its flags); imported only when asked for, since each needs its own optional packages.
RECIPES = {
    "atari": ("walt.data.recipes.atari", "AtariConfig"),
    "video_folder": ("walt.data.recipes.video_folder", "VideoFolderConfig"),
    "tfds": ("walt.data.recipes.tfds", "TfdsConfig"),
    "film": ("walt.data.recipes.film", "FilmConfig"),
    "latents": ("walt.prepare", "LatentsConfig"),
    "text": ("walt.prepare", "TextConfig"),
}


@dataclasses.dataclass(frozen=True)
class LatentsConfig:
    """Flags of `walt prepare latents`."""

    output: str = option("Folder to write; must be absent, empty, or hold just this data set.")
    input: str = option("Folder of a prepared data set of clips.")
    autoencoder: str = option("Bundle, workdir or shipped name of the autoencoder that encodes them.")
    limit: int = option("Encode at most that many clips of each split, evenly spaced; 0: all.", default=0)
    low_resolution: int = option(
        "Encode every clip a second time, that many times smaller, for a super-resolution model; 1: do not.", default=1
    )
    max_bad_records: int = option("Leave out and list up to so many clips of a split that cannot be read.", default=0)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Flags of `walt prepare text`."""

    output: str = option("Folder to write; must be absent, empty, or hold just this data set.")
    input: str = option("Folder of a prepared data set of latents.")
    encoder: str = option("Bundle of the text encoder that embeds their captions (walt convert t5 or minilm).")
    length: int = option("Tokens per caption, padded or cut; the diffusion.caption_length of the run.", default=24)


def prepare(config: LatentsConfig | TextConfig) -> None:
    """Runs a job that needs models: those live in walt.experiment, which imports jax."""
    name = "latents" if isinstance(config, LatentsConfig) else "texts"
    importlib.import_module(f"walt.experiment.{name}").prepare(**vars(config))


def main(argv: Sequence[str]) -> None:
    """Runs one recipe; `argv` is [program, recipe, --flag=value, ...]."""
    program, *arguments = argv
    if not arguments or arguments[0] in ("--help", "-h", "-help"):
        print(__doc__.strip())
        raise SystemExit(0 if arguments else 2)
    recipe, *rest = arguments
    if recipe not in RECIPES:
        raise command.CommandError(f"there is no recipe {recipe!r}; the recipes are {', '.join(RECIPES)}")
    module_name, class_name = RECIPES[recipe]
    module = importlib.import_module(module_name)
    module.prepare(command.parse(getattr(module, class_name), [f"{program} {recipe}", *rest]))


if __name__ == "__main__":
    command.run(main)
