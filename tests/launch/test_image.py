"""The container image, the list of packages of pods, and every shell script: what linters and setup.py say of them."""

from __future__ import annotations

import fnmatch
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def lint(tool: str, *arguments: str, root: Path) -> None:
    program = shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, f"{tool} is not installed: pip install -e .[test]"
    result = subprocess.run([program, *arguments], cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def instructions(root: Path) -> list[tuple[str, str]]:
    """(instruction, argument) of every line of the Dockerfile."""
    text = (root / "Dockerfile").read_text().replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]


def setup_arguments(root: Path) -> dict:
    folder = os.getcwd()
    os.chdir(root)
    try:
        with mock.patch.object(setuptools, "setup") as setup:
            runpy.run_path("setup.py")
    finally:
        os.chdir(folder)
    return setup.call_args.kwargs


def test_shell_scripts(root):
    scripts = [str(path) for path in (*root.glob("launch/**/*.sh"), root / ".ci" / "run")]
    assert len(scripts) >= 9
    lint("shellcheck", *scripts, root=root)


def test_dockerfile(root):
    lint("hadolint", "Dockerfile", root=root)


def test_the_image_runs_walt_as_nobody_special(root):
    lines = instructions(root)
    last = {name: argument for name, argument in lines}
    assert last["USER"] == "1000" and json.loads(last["ENTRYPOINT"]) == ["walt"]
    bases = {argument.split()[0] for name, argument in lines if name == "FROM"}
    assert len(bases) == 1 and next(iter(bases)).startswith("python:3.12-slim"), (
        "a slim Python, the same in both stages"
    )
    assert not [name for name, _ in lines if name in ("ADD", "ARG")], (
        "nothing from the network or the builder's machine"
    )


def test_the_builder_sees_only_what_is_installed(root):
    rules = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [
        word
        for name, argument in instructions(root)
        if name == "COPY" and "--from" not in argument
        for word in argument.split()[:-1]
    ]
    assert sorted(copied) == sorted(allowed), "what is copied is what is let through"
    assert all((root / path).exists() for path in copied)
    assert not [path for path in allowed if fnmatch.fnmatch(path, ".*")], "no dotfile, where secrets lie"


def test_pods_have_every_package_in_a_version_that_fits(root):
    lines = (root / "launch" / "requirements.txt").read_text().splitlines()
    listed = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(package.name): next(iter(package.specifier)) for package in listed}
    assert all(specifier.operator == "==" for specifier in pinned.values()) and len(pinned) == len(listed)
    arguments = setup_arguments(root)
    needed = [Requirement(text) for text in (*arguments["install_requires"], *arguments["extras_require"]["pod"])]
    for requirement in needed:
        found = pinned.get(canonicalize_name(requirement.name))
        assert found and requirement.specifier.contains(found.version), f"launch/requirements.txt: {requirement}"
    assert {"libtpu", "gcsfs", "requests"} <= pinned.keys(), "TPUs, gs:// paths, and finding the other hosts"
