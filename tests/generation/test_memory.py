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
def test_1025_frames_need_no_more_than_129(tmp_path):
    peaks = {}
    for frames in (129, 1025):
        source, made = tmp_path / f"{frames}.mp4", tmp_path / f"{frames}_made.mp4"
        media.write_video(source, pattern(frames), 15)
        result = subprocess.run(
            [sys.executable, "-c", CHILD, str(source), str(made)], capture_output=True, text=True, check=True
        )
        peaks[frames] = int(re.search(r"peak (\d+)", result.stdout)[1])
        assert len(media.frame_times(made)) == frames
    print(f"peak resident memory in MB: { ({n: kilobytes // 1024 for n, kilobytes in peaks.items()}) }")
    assert peaks[1025] <= 1.05 * peaks[129]


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
