"""The `walt` console command: `walt train ...` runs `walt/train.py`, exactly as `python -m walt.train ...` does.

Commands are imported only when called, so `walt --help` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence

import walt
from walt.training import preemption

COMMANDS = {
    "quickstart": "the whole path on this machine: record footage, train, sample, evaluate, report",
    "prepare": "make a data set: atari, video_folder, tfds, film, latents, text",
    "train": "train an autoencoder or a diffusion transformer from a config",
    "sample": "make videos from a prompt",
    "reconstruct": "send a video through the autoencoder and back",
    "evaluate": "measure generated videos, a model or an autoencoder against real ones",
    "plan": "compile a config for a TPU topology: memory, speed, communication",
    "convert": "weights and bundles in and out",
    "serve": "a local web page that makes videos",
}


def available() -> dict[str, str]:
    """The commands that this version has: name -> one line about it."""
    return {name: line for name, line in COMMANDS.items() if importlib.util.find_spec(f"walt.{name}")}


def usage() -> str:
    """The text of `walt --help`."""
    lines = "\n".join(f"  {name:<12} {line}" for name, line in available().items())
    return f"usage: walt COMMAND [--flag=value ...]\n\n{lines}\n\n`walt COMMAND --help` lists the flags of a command."


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; `argv` without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"walt {walt.__version__}")
        raise SystemExit(0)
    name, *rest = arguments
    if name not in available():
        close = difflib.get_close_matches(name, available(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        sys.exit(f"walt: there is no command {name!r}{hint} Commands: {', '.join(available())}.")
    if name == "train":
        preemption.until_watched()
    from walt import command  # with all that it imports

    command.run(importlib.import_module(f"walt.{name}").main, [f"walt {name}", *rest])


if __name__ == "__main__":
    main()
