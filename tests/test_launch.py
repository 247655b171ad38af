"""The scripts of launch/ on machines that lack something, with stand-ins for python, pip and df: no network, no waiting."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = [
    "bash",
    "env",
    "dirname",
    "awk",
    "cat",
    "rm",
    "tail",
    "cksum",
    "mkdir",
    "chmod",
    "printf",
    "sed",
    "ls",
    "touch",
]

# A python that passes the version check, makes environments out of copies of itself, and writes down what it is asked.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *version_info*) exit {version_status} ;;
  "-m venv"*) mkdir -p "${{@: -1}}/bin"; cat "$0" >"${{@: -1}}/bin/python"; chmod +x "${{@: -1}}/bin/python" ;;
  "-m pip"*) echo "pip $*" >>calls; exit {pip_status} ;;
  "-c "*) exit 0 ;;
  *) echo "$*" >>calls ;;
esac
"""


class Machine:
    """A copy of the scripts beside a folder of the only programs they can find."""

    def __init__(self, folder: Path, root: Path):
        self.project, self.bin = folder / "my project", folder / "bin"
        self.project.mkdir()
        self.bin.mkdir()
        shutil.copytree(root / "launch", self.project / "launch")
        shutil.copytree(root / ".ci", self.project / ".ci")
        (self.project / "setup.py").write_text("version 1")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.disk(100)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def disk(self, gigabytes: int) -> None:
        self.program("df", f"#!/bin/sh\necho header\necho disk 1 1 {gigabytes * 1048576} 1% /\n")

    def python(self, name: str = "python3", *, version_status: int = 0, pip_status: int = 0) -> None:
        self.program(name, PYTHON.format(version_status=version_status, pip_status=pip_status))

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(self.project / script), *arguments]
        environment = {"PATH": str(self.bin), "HOME": str(self.bin)}
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=30)

    def calls(self) -> list[str]:
        file = self.project / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path: Path, root: Path) -> Machine:
    return Machine(tmp_path, root)


SCRIPTS = ["launch/quickstart.sh", "launch/test.sh", "launch/train_mini.sh", "launch/train_cascade.sh", ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_python(machine, script):
    result = machine.run(script)
    assert result.returncode == 1 and result.stderr.startswith(
        "error: Python 3.11 or newer is needed and none was found"
    )
    assert len(result.stderr.splitlines()) == 1 and not (machine.project / ".venv").exists()


def test_an_old_python_and_a_broken_stub_are_passed_over(machine):
    machine.python("python3", version_status=1)
    machine.program("python3.13", "#!/bin/sh\nexit 127\n")
    assert machine.run("launch/quickstart.sh").stderr.startswith("error: Python 3.11 or newer is needed")
    machine.python("python3.11")
    assert machine.run("launch/quickstart.sh").returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_disk(machine, script):
    machine.python()
    machine.disk(2)
    result = machine.run(script)
    assert result.returncode == 1
    assert result.stderr == f"error: 4 GB of free disk are needed in {machine.project} and 2 GB are free.\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_registry(machine, script):
    machine.python(pip_status=1)
    result = machine.run(script)
    assert result.returncode == 1
    assert "error: pip could not install the packages; is the package registry (PyPI) reachable?" in result.stderr
    assert machine.run(script).returncode == 1, "a failed installation is not taken for a finished one"


def test_no_venv_module(machine):
    machine.program("python3", '#!/usr/bin/env bash\n[[ "$*" != *venv* ]]\n')
    assert "cannot make a virtual environment" in machine.run("launch/quickstart.sh").stderr


def test_quickstart_installs_once_and_passes_its_arguments(machine):
    machine.python()
    first = machine.run("launch/quickstart.sh", "--minutes=1")
    assert first.returncode == 0, first.stderr
    assert machine.calls() == [
        "pip -m pip install --disable-pip-version-check -e .[demo,report]",
        "-m walt.quickstart --output=runs/quickstart --minutes=1",
    ]
    assert machine.run("launch/quickstart.sh").returncode == 0
    assert machine.calls() == ["-m walt.quickstart --output=runs/quickstart"]
    (machine.project / "setup.py").write_text("version 2")
    assert machine.run("launch/quickstart.sh").returncode == 0
    assert len(machine.calls()) == 2, "a changed setup.py is installed again"


def test_a_moved_project_is_installed_again(machine):
    machine.python()
    machine.run("launch/quickstart.sh")
    machine.project = machine.project.rename(machine.project.with_name("moved"))
    machine.calls()
    machine.run("launch/quickstart.sh")
    assert machine.calls()[0].startswith("pip ")


def test_test_script_runs_every_check_and_names_the_failed(machine):
    machine.python()
    for tool in ("ruff", "mypy", "lint-imports"):
        machine.program(tool, f'#!/bin/sh\necho "{tool} $*" >>calls\nexit 0\n')
    machine.run("launch/test.sh")
    machine.calls()
    result = machine.run("launch/test.sh", "--slow", "-k", "two words")
    assert result.returncode == 0 and result.stdout.endswith("all checks passed\n")
    assert machine.calls() == [
        "pip -m pip install --disable-pip-version-check -e .[test,serve,browser]",
        "ruff format --check --quiet .",
        "ruff check --quiet .",
        "mypy ",
        "lint-imports --no-logo",
        "-m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow or not slow --resume -k two words",
    ]
    machine.program("mypy", "#!/bin/sh\nexit 1\n")
    result = machine.run("launch/test.sh")
    assert result.returncode == 1 and result.stderr == "error: failed: mypy.\n"
    assert "pytest" in machine.calls()[-1], "one failed check does not hide the others"


def test_ci_runs_the_test_script(root):
    assert 'exec bash "$(dirname "${BASH_SOURCE[0]}")/../launch/test.sh"' in (root / ".ci" / "run").read_text()


def test_slow_runs_resume_until_code_changes(tmp_path, root):
    (tmp_path / "tests").mkdir()
    (tmp_path / "setup.py").write_text("")
    shutil.copy(root / "tests" / "conftest.py", tmp_path / "tests")
    file = tmp_path / "tests" / "test_it.py"
    file.write_text("def test_good(): pass\ndef test_bad(): assert False\n")

    def run() -> str:
        command = [sys.executable, "-m", "pytest", "--resume", "-q", "tests"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout

    assert "1 failed, 1 passed" in run()
    assert "1 failed, 1 deselected" in run(), "what passed is not run again, what failed is"
    file.write_text("def test_good(): pass\ndef test_bad(): pass\n")
    assert "2 passed" in run()


def test_code_is_all_that_tests_read(tmp_path, root):
    (tmp_path / "tests").mkdir()
    (tmp_path / "setup.py").write_text("")
    spec = importlib.util.spec_from_file_location(
        "copied_conftest", shutil.copy(root / "tests" / "conftest.py", tmp_path / "tests")
    )
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    code = ["setup.py", "pyproject.toml", "README.md", "notebooks/quickstart.ipynb", ".ci/run", "Dockerfile"]
    code += ["walt/a.py", "configs/t2v/a.py", "launch/a.sh", "tests/a.py"]
    for name in [*code, "notebooks/runs/metrics.jsonl", "walt/a.pyc", "runs/a"]:
        before, file = conftest._code_checksum(), tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("changed")
        assert (conftest._code_checksum() != before) == (name in code), name
