"""Constant memory: a long video needs no more than a short one. Whole processes are measured, as a user would see them."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import walt
from walt.data import media
from walt.generation import programs

CHILD = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "walt.reconstruct", *sys.argv[1:]], check=True)
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def pattern(frames, side=64):
    """Smooth moving waves, so that the codec has little to do."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(side), np.arange(side), indexing="ij")
    return np.uint8(
        127 + 100 * np.stack([np.sin(0.1 * x + 0.2 * t), np.cos(0.1 * y - 0.1 * t), np.sin(0.05 * (x + y))], -1)
    )


@pytest.mark.slow
def test_1025_frames_need_no_more_than_129(tmp_path, monkeypatch):
    """The least of two processes each, with compiled programs at hand: what compiling leaves behind varies by a tenth."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.delenv("XLA_FLAGS")  # one device and all optimisations, as a user has it
    sources = {frames: tmp_path / f"{frames}.mp4" for frames in (129, 1025)}
    for frames, source in sources.items():
        media.write_video(source, pattern(frames), 15)
    _peak_of(sources[129], 129)  # compiles
    peaks = {frames: min(_peak_of(source, frames) for _ in range(2)) for frames, source in sources.items()}
    print(f"peak resident memory in MB: { ({n: kilobytes // 1024 for n, kilobytes in peaks.items()}) }")
    assert peaks[1025] <= 1.05 * peaks[129]


def _peak_of(source, frames):
    """Kilobytes that `walt reconstruct` of this file holds at most."""
    made = source.with_name("made.mp4")
    command = [sys.executable, "-c", CHILD, str(source), str(made)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(media.frame_times(made)) == frames
    return int(re.search(r"peak (\d+)", result.stdout)[1])


@pytest.mark.slow
def test_129_frames_in_chunks_are_those_of_one_pass():
    pipeline, video = walt.load("mini"), pattern(129)
    chunks = np.split(video, range(17, 129, 16))
    streamed = np.concatenate(list(pipeline.reconstruct_stream(chunks)))
    whole = pipeline.reconstruct(video)
    assert np.abs(streamed.astype(int) - whole).max() <= 1
    lowered = programs.encode.lower(
        pipeline._autoencoder, pipeline._autoencoder_weights, jax.ShapeDtypeStruct((1, *video.shape), np.uint8)
    )
    print(
        f"one pass over 129 frames, encoder alone: {lowered.compile().memory_analysis().temp_size_in_bytes / 1e6:.0f} MB"
    )
