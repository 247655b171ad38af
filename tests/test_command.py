"""Flags from a dataclass, overrides, and which errors become one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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
        (
            FileNotFoundError(2, "No such file or directory", "clips/a.mp4"),
            1,
            "walt x: clips/a.mp4: No such file or directory\n",
        ),
        (PermissionError(13, "Permission denied", Path("locked")), 1, "walt x: locked: Permission denied\n"),
    ],
)
def test_errors_of_the_package_and_of_files_are_one_sentence(error, status, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.run(raises(error), ["walt x"])
    assert stop.value.code == status and capsys.readouterr().err == message


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError("of no file")])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        command.run(raises(error), ["walt x"])


def test_output_files_are_tried_before_the_work(tmp_path):
    assert command.output_file(f"{tmp_path}/new/deep/out.mp4") == tmp_path / "new" / "deep" / "out.mp4"
    assert not list((tmp_path / "new" / "deep").iterdir())
    (tmp_path / "old.mp4").write_text("kept until there is another")
    assert command.output_file(f"{tmp_path}/old.mp4").read_text() == "kept until there is another"
    with pytest.raises(command.CommandError, match="new is a folder; the output must be the name of a file"):
        command.output_file(f"{tmp_path}/new")
    with pytest.raises(command.CommandError, match=r"out\.mp4 cannot be written, for .*old\.mp4 takes no files"):
        command.output_file(f"{tmp_path}/old.mp4/out.mp4")
