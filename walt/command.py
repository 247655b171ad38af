"""What the command-line modules share: flags from a frozen dataclass, config overrides, and errors as one sentence.

A command is a module with `main(argv)`, where `argv[0]` is the program's name. It describes its flags as a dataclass

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        workdir: str = command.flag("Folder of checkpoints and metrics.")
        steps: int | None = command.flag("Number of optimiser steps.", default=None)

(derived from `HostArguments` if it runs on several hosts) and ends in `if __name__ == "__main__": command.run(main)`. Flags
are absl flags, but never global ones: several commands can be imported into one process.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags
from etils import epath

T = TypeVar("T")

_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    tuple: flags.DEFINE_list,
}


class CommandError(Exception):
    """The command line cannot be understood; the message says what would be right."""


def flag(help: str, *, default: Any = dataclasses.MISSING, positional: bool = False) -> Any:
    """A field of an arguments dataclass; without a default it is required. Positional ones may be given without a name."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": positional})


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostArguments:
    """Flags of every command that computes on all hosts of a job together. TPU pods, Slurm and Open MPI need none of them."""

    coordinator_address: str | None = flag(
        "HOST:PORT of process 0, for a job of several processes; by default JAX_COORDINATOR_ADDRESS.", default=None
    )
    num_processes: int | None = flag(
        "Processes of the job, by default JAX_NUM_PROCESSES; 1 runs on this host alone, on a TPU pod too.", default=None
    )
    process_id: int | None = flag("Which of them this is, from 0; by default JAX_PROCESS_ID.", default=None)
    initialization_timeout: int = flag("Seconds to wait for the other processes to start.", default=300)
    heartbeat_timeout: int = flag(
        "Seconds without a sign of life after which a process counts as lost and the job ends.", default=100
    )

    def initialize(self) -> None:
        """Joins the other processes; imports jax."""
        from walt import parallel

        own = dataclasses.fields(HostArguments)
        parallel.initialize(**{field.name: getattr(self, field.name) for field in own})


def parse(cls: type[T], argv: Sequence[str]) -> T:
    """An instance of the arguments dataclass `cls` from `[program, --name=value, ...]`.

    Prints the flags and exits for `--help`. Raises `CommandError` for an unknown, missing or malformed flag.
    """
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if any(argument in ("--help", "-h", "-help") for argument in argv[1:]):
        print(_help(cls, argv[0]))
        raise SystemExit(0)
    values = flags.FlagValues()
    for field in fields:
        _DEFINE[_kind(hints[field.name])](field.name, None, field.metadata["help"], flag_values=values)
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise CommandError(str(error)) from error
    chosen = {name: values[name].value for name in hints if values[name].present}
    for field in fields:
        if rest and field.metadata["positional"] and field.name not in chosen:
            chosen[field.name] = rest.pop(0)
    if rest:
        raise CommandError(f"unexpected argument {rest[0]!r}; flags are written --name=value (see --help)")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in chosen:
            name = field.name.upper() if field.metadata["positional"] else f"--{field.name}"
            raise CommandError(f"{name} is missing: {field.metadata['help']}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of a command line: (the rest, {"a.b": "value"})."""
    rest, overrides = [], {}
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith("--config."):
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, "")
            if not value or value.startswith("--"):
                raise CommandError(f"{name} has no value; write {name}=VALUE")
        overrides[name.removeprefix("--config.")] = value
    return rest, overrides


def output_file(path: str) -> Path:
    """`path`, once it is known that a file can be written there; makes the folders on the way. A `gs://` path is taken as it is.

    Commands call it before their work, which may take hours. Raises `CommandError` for what is a folder or cannot be written.
    """
    if "://" in path:
        return epath.Path(path)  # type: ignore[return-value]  # it has the methods of a Path that writes
    file = Path(path).expanduser()
    if file.is_dir():
        raise CommandError(f"{file} is a folder; the output must be the name of a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written and not only asked for: what permissions say is not true of every file system and every user.
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise CommandError(f"{file} cannot be written, for {file.parent} takes no files: {error.strerror}") from error
    return file


def run(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Calls `main` and exits. An error of this package, and what the system says of a file, is printed as one sentence; any
    other error keeps its traceback."""
    arguments = list(sys.argv if argv is None else argv)
    if argv is None:
        arguments[0] = f"python -m {_module_name(main)}"
    # Libraries of the data pipeline read absl's global flags and fail when nobody has parsed any.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    try:
        status = main(arguments)
    except KeyboardInterrupt:
        _fail(arguments[0], "interrupted", 130)
    except (CommandError, app.UsageError) as error:
        _fail(arguments[0], str(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(arguments[0], f"{error.filename}: {error.strerror}", 1)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "walt":
            raise
        _fail(arguments[0], str(error), 1)
    raise SystemExit(status)


def _fail(program: str, message: str, status: int) -> typing.NoReturn:
    print(f"{program}: {message}", file=sys.stderr)
    if "jax" in sys.modules:  # without it this process has joined no others
        from walt.parallel.processes import leave

        leave(message, status)
    raise SystemExit(status)


def _module_name(main: Callable[..., Any]) -> str:
    spec = getattr(sys.modules.get(main.__module__), "__spec__", None)
    return spec.name if spec else main.__module__


def _kind(hint: Any) -> type:
    """The plain type of `int`, `int | None`, `tuple[str, ...]`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return typing.get_origin(hint) or hint


def _help(cls: type, program: str) -> str:
    positional, named = "", []
    for field in sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only)):  # those of every host last
        default = field.default
        note = "" if default in (dataclasses.MISSING, None, ()) else f" (default: {default})"
        if field.metadata["positional"]:
            positional += f" {field.name.upper()}"
            named.append(f"  {field.name.upper()}\n      {field.metadata['help']}{note}")
        else:
            required = " (required)" if default is dataclasses.MISSING else note
            named.append(f"  --{field.name}\n      {field.metadata['help']}{required}")
    doc = (sys.modules[cls.__module__].__doc__ or "").strip()
    return f"{doc}\n\nusage: {program}{positional} [--flag=value ...]\n\n" + "\n".join(named)
