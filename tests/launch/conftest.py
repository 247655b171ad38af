"""A machine to launch from: copies of the scripts, and a cloud of folders in place of Google's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = "awk basename bash cat cksum cp cut date dirname env grep gzip id kill mkdir mv ps rm sed seq setsid tail tar tr".split()

# The uv of a host: its environments hold a walt that writes down how it was called and does what the scenario says.
UV = """#!/usr/bin/env bash
case "$1" in
  venv) mkdir -p "${@: -1}/bin" ;;
  pip)
    [[ ! -e "$CLOUD/no_packages" ]] || exit 1
    echo "$HOST ${@: -1}" | sed "s|$HOME|~|" >>"$CLOUD/installed"
    cp "$(dirname "$0")/fake_walt" "${5%/python}/walt"
    ;;
esac
"""
WALT = """#!/usr/bin/env bash
echo "$HOST" >>"$CLOUD/started"
python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>"$CLOUD/arguments"
echo "the log of $HOST"
starts="$(grep -c "^$HOST$" "$CLOUD/started")"
fate="$(sed -n "${starts}p" "$CLOUD/fate-$HOST" 2>/dev/null || true)"
case "${fate:-$(sed -n "${starts}p" "$CLOUD/fate")}" in
  lingers) (while true; do sleep 1; done) & ;; # something that the command has left behind
  vanishes) kill -KILL 0 ;; # with all that watches it, as when the host restarts
  trains) trap 'exit 75' TERM; while true; do sleep 1; done ;;
  *) exit "${fate:-$(sed -n "${starts}p" "$CLOUD/fate")}" ;;
esac
"""


class Launcher:
    """Runs the scripts with the programs of a folder and nothing else; time passes twenty times as fast."""

    def __init__(self, folder: Path, root: Path):
        self.root, self.folder = root, folder
        self.project, self.bin, self.cloud = folder / "my project", folder / "bin", folder / "cloud"
        for path in (self.project, self.bin, self.cloud):
            path.mkdir()
        shutil.copytree(root / "launch", self.project / "launch")
        for name in (
            "setup.py",
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "walt/_bundles/mini/walt.json",
            "configs/a.py",
        ):
            (self.project / name).parent.mkdir(parents=True, exist_ok=True)
            (self.project / name).write_text(name)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.program("python3", f'#!/bin/sh\nexec "{sys.executable}" -ES "$@"\n')
        self.program("sleep", f"#!/bin/sh\nexec {shutil.which('sleep')} 0.05\n")
        self.program("hostname", '#!/bin/sh\necho "${HOST:-here}"\n')
        self.program("uv", UV)
        self.program("fake_walt", WALT)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def gcloud(self, *states: list[str], fate: str = "0", **scenario: Any) -> None:
        """The cloud's behaviour: see fake_gcloud.py; `fate` is what the first, second, … start of the command does."""
        shutil.copy(Path(__file__).parent / "fake_gcloud.py", self.bin)
        self.program("gcloud", f'#!/bin/sh\nexec "{sys.executable}" -ES "{self.bin}/fake_gcloud.py" "$@"\n')
        self.fate(fate)
        (self.cloud / "scenario.json").write_text(json.dumps({"states": states or [["ACTIVE"]], **scenario}))

    def fate(self, fate: str, host: str = "") -> None:
        (self.cloud / (f"fate-{host}" if host else "fate")).write_text("\n".join(fate.split()) + "\n")

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": str(self.bin),
            "HOME": str(self.folder),
            "CLOUD": str(self.cloud),
            **more,
        }

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(self.project / "launch" / script), *arguments]
        environment = self.environment(**environment)
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)

    def calls(self) -> list[list[str]]:
        """What gcloud was asked: [verb, argument, …]."""
        file = self.cloud / "calls.jsonl"
        return [json.loads(line)[3:] for line in file.read_text().splitlines()] if file.exists() else []

    def lines(self, name: str) -> list[str]:
        file = self.cloud / name
        return file.read_text().splitlines() if file.exists() else []

    def close(self) -> None:
        for pid in (self.cloud / "hosts").glob("*/walt/run/pid"):
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.fixture
def launcher(tmp_path: Path, root: Path):
    launcher = Launcher(tmp_path, root)
    yield launcher
    launcher.close()
