"""Flags from a dataclass, overrides, and which errors become one sentence."""

from __future__ import annotations

import dataclasses

import pytest

from walt import command
from walt.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Arguments:
    what: str = command.flag("What to do.", positional=True)
    output: str = command.flag("Where to.")
    steps: int | None = command.flag("How many.", default=None)
    rate: float = command.flag("How fast.", default=0.5)
    quiet: bool = command.flag("Say less.", default=False)
    games: tuple[str, ...] = command.flag("Which.", default=("pong",))


def parse(*arguments: str) -> Arguments:
    return command.parse(Arguments, ["walt test", *arguments])


def test_every_kind_of_flag():
    assert parse("go", "--output=x") == Arguments("go", "x")
    everything = parse("go", "--output", "x", "--steps=3", "--rate=2", "--quiet", "--games=a,b")
    assert everything == Arguments("go", "x", 3, 2.0, True, ("a", "b"))
    assert parse("--what=go", "--output=x").what == "go"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=x"], "WHAT is missing: What to do."),
        (["go"], "--output is missing: Where to."),
        (["go", "--output=x", "more"], "unexpected argument 'more'"),
        (["go", "--output=x", "--step=3"], "Unknown command line flag 'step'. Did you mean: steps ?"),
        (["go", "--output=x", "--steps=many"], "flag --steps=many"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(command.CommandError) as error:
        parse(*arguments)
    assert message in str(error.value)


def test_help_lists_flags_and_exits(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: walt test WHAT [--flag=value ...]" in text
    assert "--output\n      Where to. (required)" in text and "How fast. (default: 0.5)" in text


def test_overrides_are_taken_out():
    rest, overrides = command.split_overrides(
        ["p", "--config=a", "--config.x.y=1=2", "--config.z", "-3", "--workdir=w"]
    )
    assert rest == ["p", "--config=a", "--workdir=w"] and overrides == {"x.y": "1=2", "z": "-3"}
    with pytest.raises(command.CommandError, match=r"--config\.z has no value"):
        command.split_overrides(["p", "--config.z", "--workdir=w"])


def raises(error: BaseException):
    def main(argv: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("width must be even"), 1, "walt x: width must be even\n"),
        (command.CommandError("--a is missing"), 2, "walt x: --a is missing\n"),
        (KeyboardInterrupt(), 130, "walt x: interrupted\n"),
    ],
)
def test_errors_of_the_package_are_one_sentence(error, status, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.run(raises(error), ["walt x"])
    assert stop.value.code == status and capsys.readouterr().err == message


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run(raises(ZeroDivisionError()), ["walt x"])
