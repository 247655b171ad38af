"""Every generation task as one strip of pictures and a figure: docs/tasks/*.webp and figures.json. Started by gallery.sh.

A bar under a picture says that it was given. Seams are frame differences where known and made pictures meet, over the median difference of the
clip itself; drift is measured on windows of 100 pictures of a stream against its first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import walt
from walt.evaluation.source import read_clips

SHOWN, SCALE, BAR = 9, 2, 6
GREEN, GREY = (60, 170, 90), (255, 255, 255)
EDITS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def strip(video: np.ndarray, known: np.ndarray, path: Path, rows: int = 1) -> None:
    """Evenly spaced pictures of a video, in so many rows, with bars under those that are known."""
    places = np.linspace(0, len(video) - 1, min(len(video), SHOWN * rows)).round().astype(int)
    height, width = (side * SCALE for side in video.shape[1:3])
    columns = -(-len(places) // rows)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + BAR + 4)), (255, 255, 255))
    for number, place in enumerate(places):
        left, top = number % columns * (width + 2), number // columns * (height + BAR + 4)
        sheet.paste(Image.fromarray(video[place]).resize((width, height), Image.Resampling.NEAREST), (left, top))
        sheet.paste(GREEN if known[place] else GREY, (left, top + height + 1, left + width, top + height + 1 + BAR))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=85)


def seam(video: np.ndarray, places: list[int]) -> dict[str, float]:
    """The largest frame difference into the given frames, over the median and over the largest of all others. A loop's seam is that into frame 0."""
    change = np.abs(video.astype(float) - np.roll(video, 1, axis=0)).mean((1, 2, 3))
    others = np.delete(change, [0, *places])
    worst = max(change[place] for place in places)
    return {
        "over_median": round(float(worst / max(np.median(others), 1e-6)), 2),
        "over_largest": round(float(worst / max(others.max(), 1e-6)), 2),
    }


def statistics(video: np.ndarray) -> dict[str, float]:
    """Colour, sharpness and motion: mean of pixels, mean difference of neighbours in space, and in time."""
    video = video.astype(float)
    detail = (np.abs(np.diff(video, axis=1)).mean() + np.abs(np.diff(video, axis=2)).mean()) / 2
    motion = np.abs(np.diff(video, axis=0)).mean()
    return {"colour": float(video.mean()), "sharpness": float(detail), "motion": float(motion)}


def main() -> None:
    """Makes them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="mini")
    parser.add_argument(
        "--footage", required=True, help="a folder of `walt prepare atari`; its held-out clips are given"
    )
    parser.add_argument("--output", default="docs/tasks")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--stream_frames", type=int, default=1000)
    arguments = parser.parse_args()
    output, pipeline, clips = (
        Path(arguments.output),
        walt.load(arguments.checkpoint),
        read_clips(arguments.footage, "heldout"),
    )
    options: dict[str, Any] = {"steps": arguments.steps}
    chosen = {label: int(clips.rows_of(label)[0]) for label in clips.label_names}
    names = itertools.cycle(chosen)
    clip_of = {label: clips.videos[row][: pipeline.check_size().frames] for label, row in chosen.items()}
    prompt_of = {label: clips.prompts[row] for label, row in chosen.items()}
    figures: dict[str, Any] = {
        "conditioning": pipeline.conditioning,
        "steps": arguments.steps or pipeline.sampler.steps,
    }

    def show(task: str, video: np.ndarray, known: slice | list[int] | None = None, rows: int = 1) -> None:
        marks = np.zeros(len(video), bool)
        if known is not None:
            marks[known] = True
        strip(video, marks, output / f"{task}.webp", rows)
        print(f"{time.strftime('%H:%M:%S')} {task}: {len(video)} frames", flush=True)

    def game() -> tuple[np.ndarray, str]:
        label = next(names)
        return clip_of[label], prompt_of[label]

    video, prompt = game()
    show("generate", pipeline.generate(prompt, **options))
    video, prompt = game()
    show("animate", pipeline.animate(video[0], prompt, **options), [0])
    video, prompt = game()
    show("predict", pipeline.predict(video, prompt, **options), slice(0, 5))
    video, prompt = game()
    made = pipeline.extend(video, prompt, 0.8, "both", **options)
    before = round(0.8 * pipeline.fps)
    figures["extend_seam"] = seam(made, [before, before + len(video)])
    show("extend", made, slice(before, before + len(video)), rows=2)
    video, prompt = game()
    half = len(video) // 2
    made = pipeline.connect(video[:half], video[half:][::-1].copy(), prompt, **options)
    figures["connect_seam"] = seam(made, [half, len(made) - (len(video) - half)])
    show("connect", made, [*range(half), *range(len(made) - (len(video) - half), len(made))], rows=2)
    video, prompt = game()
    made = pipeline.loop(prompt, **options)
    figures["loop_seam"] = seam(made, [0])
    show("loop", made)
    made = pipeline.loop(prompt, video=video, **options)
    figures["loop_video_seam"] = seam(made, [0, len(video)])
    show("loop_video", made, slice(0, len(video)), rows=2)
    video, prompt = game()
    plain = pipeline.reconstruct(video).astype(float)
    edits = [pipeline.edit(video, prompt, strength=strength, **options) for strength in EDITS]
    figures["edit_psnr"] = {
        str(strength): round(float(10 * np.log10(255**2 / max(np.square(edit - plain).mean(), 1e-3))), 1)
        for strength, edit in zip(EDITS, edits)
    }
    show("edit", np.stack([edit[8] for edit in edits]))
    video, prompt = game()
    mask = np.zeros(video.shape[1:3], bool)
    mask[16:48, 16:48] = True
    show("inpaint", pipeline.inpaint(video, mask, prompt, keep_pixels=True, **options))
    video, prompt = game()
    show("outpaint", pipeline.outpaint(video[:, 8:56, 8:56], 64, 64, prompt, keep_pixels=True, **options))
    video, prompt = game()
    places = {0: video[0], 8: video[8], 16: video[16]}
    show("keyframes", pipeline.keyframes(places, prompt, keep_pixels=True, **options), list(places))
    video, prompt = game()
    show("interpolate", pipeline.interpolate(video[:9:2], 4, prompt=prompt, **options), slice(0, None, 4))
    video, prompt = game()
    show(
        "vary",
        np.concatenate([video[8:9], *(pipeline.vary(video, seed, prompt=prompt, **options)[8:9] for seed in range(5))]),
        [0],
    )
    board = {"shots": [{"prompt": prompt, "num_frames": 12} for prompt in list(prompt_of.values())[:3]]}
    board["shots"][1]["transition"], board["shots"][2]["transition"] = "morph", "continue"
    output.mkdir(parents=True, exist_ok=True)
    (output / "storyboard.json").write_text(json.dumps(board, indent=1) + "\n")
    show("storyboard", pipeline.storyboard(output / "storyboard.json", **options), rows=2)
    _, prompt = game()
    for noise in (0.0, 0.1):
        frames = np.stack(
            list(itertools.islice(pipeline.stream(prompt, context_noise=noise, **options), arguments.stream_frames))
        )
        parts = [statistics(frames[start : start + 100]) for start in range(0, len(frames), 100)]
        figures[f"stream_drift_{noise:g}"] = {
            name: [round(part[name] / max(parts[0][name], 1e-6), 2) for part in parts] for name in parts[0]
        }
        show("stream" if noise else "stream_clean", frames, rows=2)
    (output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
