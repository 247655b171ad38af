"""TPU slices as Google Cloud rents them, and whether a command can run there; what tpu_vm.sh and gke/ know in common.

    python launch/pods.py slice v5p:4x4x8              # accelerator type, image and hosts of TPU VMs, for the shell
    python launch/pods.py check local|bucket -- walt train …   # refuses a command that could not work on other machines

Needs nothing but Python: it runs on the machine that launches, where the package need not be installed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class LaunchError(Exception):
    """What was asked for cannot be launched; the message is one sentence that says what would be right."""


@dataclass(frozen=True)
class Tpu:
    """One generation, named as `walt plan` names it.

    Attributes:
      vm_type: first part of the accelerator types of TPU VMs (`v5p-128`); None where there are none.
      per_chip: what the number of an accelerator type counts for a chip: 2 TensorCores, or 1 chip.
      vm_image: runtime version of TPU VMs.
      gke_label: of nodes, cloud.google.com/gke-tpu-accelerator.
      gke_machine: machine type of nodes; {} is the number of chips of a host.
      shapes: that have an accelerator type; v4, v5p and tpu7x come in more, on GKE only.
    """

    vm_type: str | None
    per_chip: int
    vm_image: str
    gke_label: str
    gke_machine: str
    shapes: str


PLANES = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"

# From the pages of Cloud TPU (v4, v5e, v5p, v6e, software versions) and of GKE (TPUs in GKE, plan TPUs).
TPUS = {
    "v4": Tpu("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-{}t", CUBES),
    "v5e": Tpu("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", PLANES),
    "v5p": Tpu("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-{}t", f"{CUBES} 16x16x16 16x16x24"),
    "v6e": Tpu("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-{}t", PLANES),
    "tpu7x": Tpu(None, 2, "", "tpu7x", "tpu7x-standard-{}t", f"{CUBES} 16x16x16"),
}


@dataclass(frozen=True)
class Slice:
    """One slice: chips joined by their own network, such as `v5p:4x4x8`."""

    topology: str
    tpu: Tpu
    shape: str

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.shape.split("x")))

    @property
    def chips_per_host(self) -> int:
        """Four, but flat slices of up to eight chips are one host."""
        return self.chips if self.shape.count("x") == 1 and self.chips <= 8 else 4

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def vm_type(self) -> str:
        """The accelerator type of TPU VMs; raises `LaunchError` if there is none."""
        if self.tpu.vm_type is None:
            raise LaunchError(f"there are no TPU VMs of {self.topology}: use launch/gke/submit.sh")
        if self.shape not in self.tpu.shapes.split():
            raise LaunchError(
                f"TPU VMs come in no shape {self.topology}: use launch/gke/submit.sh, or one of {self.tpu.shapes}"
            )
        return f"{self.tpu.vm_type}-{self.chips * self.tpu.per_chip}"


def parse_slice(topology: str) -> Slice:
    """The slice that `v5p:4x4x8` means; raises `LaunchError` that names what there is."""
    generation, _, shape = topology.partition(":")
    if generation not in TPUS:
        raise LaunchError(
            f"--topology={topology} is of no known TPU: use one of {', '.join(TPUS)} with a shape, such as v5p:4x4x4"
        )
    tpu, sides = TPUS[generation], shape.split("x")
    larger = tpu.shapes.startswith(CUBES) and len(sides) == 3 and all(s.isdecimal() and int(s) % 4 == 0 for s in sides)
    if shape not in tpu.shapes.split() and not (larger and 0 < int(sides[0]) <= int(sides[1]) <= int(sides[2])):
        more = " (and larger ones whose sides are rising multiples of 4)" if tpu.shapes.startswith(CUBES) else ""
        raise LaunchError(f"--topology={topology} is no shape of {generation}, which comes in {tpu.shapes}{more}")
    return Slice(topology, tpu, shape)


COMMANDS = ("train", "sample", "evaluate", "prepare", "reconstruct", "convert")
WRITTEN = ("workdir", "output", "json", "report")
READ = ("checkpoint", "cascade", "autoencoder", "encoder", "input", "real", "generated", "card")
READ_CONFIG = ("config.data.path", "config.autoencoder_path", "config.text_encoder_path", "config.init_from.path")


def check_command(command: Sequence[str], *, one_lasting_disk: bool) -> None:
    """Raises `LaunchError` for a command that names files of this machine, or leaves results where they get lost.

    Args:
      command: as it would be typed here, `["walt", "train", "--config=…", …]`.
      one_lasting_disk: it runs on one host whose disk stays, so results may lie there.
    """
    if not command or command[0] != "walt" or len(command) < 2 or command[1] not in COMMANDS:
        given = f", got {' '.join(command[:2])}" if command else ""
        raise LaunchError(
            "after -- comes the command as it would be run here, "
            f"such as walt train --config=t2v/base_3b --workdir=gs://BUCKET/RUN{given}"
        )
    flags = dict(_flags(command[2:]))
    if command[1] == "train" and "workdir" not in flags:
        raise LaunchError("walt train needs --workdir=gs://BUCKET/RUN")
    for name in WRITTEN:
        value = flags.get(name, "gs://")
        if not value.startswith("gs://") and not one_lasting_disk:
            raise LaunchError(f"--{name}={value} would lie on disks that are not shared and do not last: use gs://")
    shipped = {folder.name for folder in (ROOT / "walt" / "_bundles").glob("*")}
    for name in (*READ, *READ_CONFIG):
        for value in flags.get(name, "gs://").split(","):
            if not value.startswith(("gs://", "/")) and value not in shipped and not one_lasting_disk:
                raise LaunchError(f"--{name}={value} is a path of this machine: copy it to gs:// and name that")
    if flags.get("config", "").partition(":")[0].endswith(".py"):
        raise LaunchError(
            f"--config={flags['config']} is a file of this machine: put it into configs/, which is installed "
            "everywhere, and name it as shipped configs are named"
        )


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of `--name=value` and `--name value`."""
    for argument, after in zip(arguments, [*arguments[1:], "--"]):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            yield name, value if equals or after.startswith("--") else after


def main(argv: Sequence[str]) -> None:
    """What the shell asks: see the module's docstring."""
    match argv:
        case ["slice", topology]:
            found = parse_slice(topology)
            print(found.vm_type, found.tpu.vm_image, found.hosts)
        case ["check", "local" | "bucket" as where, "--", *command]:
            check_command(command, one_lasting_disk=where == "local")
        case _:
            raise LaunchError(f"usage: {__doc__}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LaunchError as error:
        sys.exit(f"error: {error}")
