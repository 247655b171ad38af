"""Train an autoencoder (stage 1) or a diffusion transformer (stage 2).

    walt train --config=autoencoder/atari --workdir=runs/autoencoder
    walt train --config=t2v/atari:mini --workdir=runs/t2v --config.training.num_steps=100

`--config` is a shipped name or a path to a config file (Python code: use only those you trust), with an optional
`:variant`; `--config.a.b=value` replaces one value. A workdir that already holds a checkpoint is continued. Told to end (SIGTERM), it
saves and ends with status 75; Ctrl-C does so with status 130, and once more ends it at once. The same command goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from walt.training import preemption

if __name__ == "__main__":
    preemption.until_watched()

import walt.config
from walt import command


@dataclasses.dataclass(frozen=True)
class Arguments(command.HostArguments):
    """Flags of `walt train`."""

    config: str = command.flag("Shipped config name or path of a config file, with an optional :variant.")
    workdir: str = command.flag("Folder for checkpoints and metrics; continued if it holds a checkpoint.")
    profile: str | None = command.flag("START:STOP, steps between which a jax profiler trace is written.", default=None)


def main(argv: Sequence[str]) -> None:
    """Trains what the config describes; `argv` is [program, --flag=value, ...]."""
    with preemption.watching():
        _train(argv)


def _train(argv: Sequence[str]) -> None:
    rest, overrides = command.split_overrides(argv)
    arguments = command.parse(Arguments, rest)
    profile = steps_to_trace(arguments.profile) if arguments.profile else range(0)
    arguments.initialize()  # imports jax: `walt train --help` and flag errors need not wait for it
    config = walt.config.apply_overrides(walt.config.load(arguments.config), overrides)

    from walt import experiment

    experiment.train(config, arguments.workdir, profile=profile)


def steps_to_trace(text: str) -> range:
    """The steps that "START:STOP" means."""
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise command.CommandError(f"--profile must be START:STOP with START < STOP, such as 10:20, got {text!r}")
    return range(int(start), int(stop))


if __name__ == "__main__":
    command.run(main)
