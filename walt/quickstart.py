"""The whole path on this machine: record footage, train both stages, sample, measure, write a report.

    walt quickstart --output=runs/quickstart
    walt quickstart --output=runs/scratch --from_scratch --autoencoder_seconds=1800

Started again, it goes on where it stopped; a finished run only prints its results again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from walt import command


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of `walt quickstart`."""

    output: str = command.flag("Folder for everything the job makes.", default="runs/quickstart")
    clips: int = command.flag("Training clips to record, over all games.", default=1000)
    heldout: int = command.flag("Held-out clips to record, over all games.", default=128)
    games: tuple[str, ...] | None = command.flag("Games to record, by ale-py's ROM names.", default=None)
    autoencoder: str = command.flag("Bundle, workdir or shipped name that stage 1 starts from.", default="mini")
    from_scratch: bool = command.flag("Train the autoencoder from nothing.", default=False)
    autoencoder_seconds: float = command.flag("Training time of stage 1.", default=60.0)
    transformer_seconds: float = command.flag("Training time of stage 2.", default=300.0)
    seeds: int = command.flag("Samples per prompt.", default=8)


def main(argv: Sequence[str]) -> None:
    """Runs the job; `argv` is [program, --flag=value, ...]."""
    arguments = command.parse(Arguments, argv)
    import jax  # here: `--help` and flag errors need not wait for it

    from walt.experiment.quickstart import QuickstartConfig, run

    # A second start, and the trial steps before a training run, need not compile again.
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(Path(arguments.output).resolve() / "compiled"))
    chosen = {name: value for name, value in vars(arguments).items() if value is not None}
    run(QuickstartConfig(**chosen))


if __name__ == "__main__":
    command.run(main)
