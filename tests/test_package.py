"""The package as a whole: what importing costs, that every folder is a package, and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import walt
from walt import cli

NO_JAX = ["walt", "walt.config", "walt.command", "walt.cli", "walt.train", "walt.data", "walt.data.loader", "walt.text"]
NO_JAX += ["walt.text.tokenizer"]


@pytest.mark.parametrize("module", NO_JAX)
def test_import_without_jax(module):
    """Loader workers and `--help` import these: jax would cost seconds and memory in each process."""
    code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_folder_with_code_is_a_package(root):
    folders = {file.parent for file in (root / "walt").rglob("*.py") if "_configs" not in file.parts}
    missing = [str(folder.relative_to(root)) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing, "without __init__.py these folders are missing from an installed package"


def test_test_files_have_unique_names_in_step_with_the_package(root):
    names = [file.name for file in (root / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
    assert not list((root / "tests").rglob("__init__.py"))


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        walt.laod  # noqa: B018
    assert "load" in dir(walt)


def run_walt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "walt.cli", *arguments], capture_output=True, text=True, timeout=60)


def test_help_lists_each_command_once(root):
    text = cli.usage()
    for name in cli.COMMANDS:
        exists = (root / "walt" / f"{name}.py").exists() or (root / "walt" / name).is_dir()
        assert text.count(f"\n  {name} ") == exists


def test_unknown_command_names_the_nearest():
    result = run_walt("trian")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("walt: there is no command 'trian'; did you mean 'train'? Commands: ")
    assert run_walt("xyz").stderr.startswith("walt: there is no command 'xyz'. Commands: ")


def test_no_command_prints_help_and_fails():
    result = run_walt()
    assert result.returncode == 2 and "usage: walt COMMAND" in result.stdout
    assert run_walt("--help").returncode == 0
    assert run_walt("--version").stdout == f"walt {walt.__version__}\n"


def test_command_help_comes_from_the_module():
    result = run_walt("train", "--help")
    assert result.returncode == 0 and "--workdir" in result.stdout and "usage: walt train" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "walt train: --config is missing: "),
        (["--confg=x"], "walt train: Unknown command line flag 'confg'. Did you mean: config ?"),
        (
            ["--config=x", "--workdir=w", "extra"],
            "walt train: unexpected argument 'extra'; flags are written --name=value",
        ),
        (["--config=no/such", "--workdir=w"], "walt train: no shipped config is called 'no/such'"),
        (["--config=x", "--workdir=w", "--profile=9:3"], "walt train: --profile must be START:STOP with START < STOP"),
        (
            ["--config=x", "--workdir=w", "--config.a.b"],
            "walt train: --config.a.b has no value; write --config.a.b=VALUE",
        ),
    ],
)
def test_wrong_train_flags_are_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_walt("train", *arguments)
    assert result.returncode != 0 and result.stderr.startswith(message) and "Traceback" not in result.stderr
    assert list(Path(tmp_path).iterdir()) == []


def test_unknown_config_key_in_an_override(tmp_path):
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(_): return ConfigDict({'training': {'num_steps': 1}})\n"
    )
    result = run_walt("train", f"--config={tmp_path}/c.py", f"--workdir={tmp_path}/w", "--config.training.num_step=3")
    assert "unknown config key 'training.num_step'; did you mean 'training.num_steps'?" in result.stderr
    assert not (tmp_path / "w").exists()
