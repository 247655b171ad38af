"""What another process finds compiled already."""

import os
import subprocess
import sys
import time

import pytest


@pytest.mark.slow
def test_a_second_walt_sample_compiles_nothing_and_is_done_within_ten_seconds(tmp_path):
    """With a folder of its own for compiled programs, as a user has one; start, sampling and writing included."""
    ours = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    programs, seconds = [], []
    for prompt in ("a game of Freeway", "a game of Boxing"):
        command = [sys.executable, "-m", "walt.sample", f"--prompt={prompt}", f"--output={tmp_path / 'out.mp4'}"]
        began = time.monotonic()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds.append(time.monotonic() - began)
        programs.append(sorted(path.name for path in (tmp_path / "cache").rglob("*-cache")))
    print(f"seconds from start to end: {seconds[0]:.1f}, and {seconds[1]:.1f} the second time")
    assert programs[0] and programs[0] == programs[1]
    assert seconds[1] < 10
