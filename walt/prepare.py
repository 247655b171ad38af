"""Command line: make a data set on disk.

    python -m walt.prepare atari        --output=DIR [--games=… --clips=N …]
    python -m walt.prepare video_folder --output=DIR --input=DIR …
    python -m walt.prepare tfds         --output=DIR --directory=DIR …
    python -m walt.prepare latents      --output=DIR --autoencoder=BUNDLE --input=DIR

Each recipe is a frozen dataclass of arguments and a function that takes it; the flags come from the dataclass.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

# recipe: (module, config class); imported only when asked for, since each needs its own optional packages.
RECIPES = {
    "atari": ("walt.data.recipes.atari", "AtariConfig"),
    "video_folder": ("walt.data.recipes.video_folder", "VideoFolderConfig"),
    "tfds": ("walt.data.recipes.tfds", "TfdsConfig"),
}


def main(argv: Sequence[str]) -> None:
    """Runs one recipe: argv is [program, recipe, --flag=value, …]."""
    if len(argv) < 2 or argv[1] in ("--help", "-h", "help"):
        print(f"{__doc__}\n`walt prepare RECIPE --help` lists the flags of a recipe.")
        return
    name, arguments = argv[1], list(argv[1:])
    if name not in (*RECIPES, "latents"):
        sys.exit(f"walt prepare: unknown recipe {name!r}; the recipes are {', '.join([*RECIPES, 'latents'])}.")
    try:
        if name == "latents":
            _latents(arguments)
        else:
            module_name, class_name = RECIPES[name]
            module = importlib.import_module(module_name)
            config = _parse(getattr(module, class_name), arguments)
            if config is not None:
                module.prepare(config)
    except (ValueError, flags.Error) as error:  # DatasetError, MediaError and ConfigError are ValueErrors
        sys.exit(f"walt prepare {name}: {error}")


def _latents(arguments: list[str]) -> None:
    """Encodes the clips of a data set; the job needs models, so it lives in walt.experiment."""

    @dataclasses.dataclass(frozen=True)
    class LatentsConfig:
        output: str = dataclasses.field(default="", metadata={"help": "Folder to write."})
        input: str = dataclasses.field(default="", metadata={"help": "A prepared data set of clips."})
        autoencoder: str = dataclasses.field(default="", metadata={"help": "Bundle, workdir or shipped name."})

    config = _parse(LatentsConfig, arguments)
    if config is None:
        return
    for field in dataclasses.fields(config):
        if not getattr(config, field.name):
            raise ValueError(f"--{field.name} is required.")
    latents = importlib.import_module("walt.experiment.latents")
    latents.prepare(autoencoder=config.autoencoder, input=config.input, output=config.output)


def _parse(config_class: type, arguments: list[str]) -> Any:
    """A config from [recipe, --flag=value, …], or None if only help was asked for."""
    values = flags.FlagValues()
    define: dict[type, Callable] = {int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_boolean}
    for field in dataclasses.fields(config_class):
        kind = flags.DEFINE_list if field.type == tuple[str, ...] else define.get(field.type, flags.DEFINE_string)
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        kind(field.name, default, field.metadata["help"], flag_values=values)
    if "--help" in arguments or "-h" in arguments:
        print(f"walt prepare {arguments[0]}\n{values.get_help()}")
        return None
    rest = values(arguments)[1:]
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; flags are written --name=value.")
    chosen = {field.name: values[field.name].value for field in dataclasses.fields(config_class)}
    return config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in chosen.items()})


def run() -> None:
    """Entry point without an installed console command."""
    app.run(main, flags_parser=_leave_flags_to_main)


def _leave_flags_to_main(argv: Sequence[str]) -> list[str]:
    flags.FLAGS.mark_as_parsed()
    return list(argv)


if __name__ == "__main__":
    run()
