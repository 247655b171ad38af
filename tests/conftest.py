"""What every test shares: CPU devices, a compilation cache, hypothesis settings, `--update-golden` and `--resume`."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
sys.path.append(str(ROOT / "tests"))  # for `import jobs`

# Set before anything imports jax, and through the environment so that subprocesses of tests have the same.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Eight devices; and quick compilation in place of quick programs, which tests run once or twice. Measured in CPU time: 9 s in
# place of 65 s without LLVM's optimisations (initialising a tiny autoencoder), then 44 s in place of 74 s without fusions
# emitted through MLIR (two files of tests), then 168 s in place of 190 s with each program as one module (tests/diffusion).
_XLA_FLAGS = {
    "xla_force_host_platform_device_count": "8",
    "xla_backend_optimization_level": "0",
}
if importlib.util.find_spec("libtpu") is None:  # which ends the process at a flag that it does not know
    _XLA_FLAGS |= {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}
for _flag, _value in _XLA_FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_flag}={_value}".strip()

# The first example often waits for a compilation, so time limits would measure the machine. The examples are the same
# in every run: a failure seen once can be seen again.
settings.register_profile("walt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("walt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.txt from the current configs")
    parser.addoption("--resume", action="store_true", help="skip tests that have passed since the last change of code")


# Files are handed out whole and in order: the longest ones first, so that no worker waits for the other at the end.
_LONGEST = ("tests/test_notebook.py", "tests/experiment/", "tests/generation/", "tests/autoencoder/")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(_LONGEST) if item.nodeid.startswith(start)), len(_LONGEST))

    items.sort(key=place)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--resume"):
        workers_do_not = not hasattr(config, "workerinput")  # each result reaches the process above them too
        config.pluginmanager.register(Resume(CACHE / "passed" / _code_checksum(), writes=workers_do_not))


@pytest.fixture(autouse=True, scope="module")
def what_lasts() -> Iterator[None]:
    """What a file of tests leaves in JAX's caches is looked through by no later collection: towards the end of a suite each takes seconds."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `gs://…` a folder, see bucket.py."""
    from bucket import Bucket

    return Bucket(tmp_path / "buckets", monkeypatch)


class Resume:
    """Writes the id of every test that passes to a file, and deselects those that are in it already."""

    def __init__(self, file: Path, writes: bool):
        self.file, self.writes = file, writes

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        passed = set(self.file.read_text().splitlines()) if self.file.exists() else set()
        done = [item for item in items if item.nodeid in passed]
        items[:] = [item for item in items if item.nodeid not in passed]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.writes and report.when == "call" and report.passed:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(f"{report.nodeid}\n")


def _code_checksum() -> str:
    digest = hashlib.sha256()
    for file in _code_files():
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _code_files() -> Iterator[Path]:
    """Everything that tests read; of the notebooks' folder the notebooks alone, since they leave their runs there."""
    top = ("setup.py", "pyproject.toml", "README.md", "Dockerfile", ".dockerignore", ".shellcheckrc")
    yield from (file for name in top if (file := ROOT / name).is_file())
    yield from sorted((ROOT / "notebooks").glob("*.ipynb"))
    for folder in ("walt", "configs", "launch", "tests", ".ci"):
        yield from sorted(file for file in (ROOT / folder).rglob("*") if file.is_file() and file.suffix != ".pyc")


@pytest.fixture
def root() -> Path:
    """The project's folder."""
    return ROOT
