"""Make videos from prompts.

    walt sample --prompt="a game of Freeway, the chicken moves up" --output=out.mp4
    walt sample --checkpoint=runs/t2v --prompt="..." --prompt="..." --output=sheet.png --seed=7

The suffix of `--output` decides: .mp4, .webm and .gif are videos (one file per prompt, numbered if there are several),
.png is a contact sheet, one row of frames per prompt. Without `--checkpoint` the small model that comes with the
package is used. `--cascade` names super-resolution models, the smallest first, that make its videos larger.

Started on every host of a TPU pod, the devices of all share the work, and the first host writes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from walt import command
from walt.data import media
from walt.parallel.config import MeshConfig

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif")
SUFFIXES = (*VIDEO_SUFFIXES, ".png")


@dataclasses.dataclass(frozen=True)
class Arguments(command.HostArguments):
    """Flags of `walt sample`."""

    prompt: str = command.flag("What the video should show; repeat the flag for several videos.")
    output: str = command.flag("File to write: .mp4, .webm, .gif, or .png for a contact sheet.")
    checkpoint: str = command.flag("Shipped model, bundle or work directory.", default="mini")
    cascade: tuple[str, ...] = command.flag(
        "Bundles or work directories of super-resolution models that follow, comma-separated.", default=()
    )
    num_frames: int | None = command.flag("Frames; by default those of the model.", default=None)
    height: int | None = command.flag("Height in pixels; by default that of the model.", default=None)
    width: int | None = command.flag("Width in pixels; by default that of the model.", default=None)
    steps: int | None = command.flag("Denoising steps (of --checkpoint); by default the model's.", default=None)
    guidance: float | None = command.flag(
        "How strongly to follow the prompt (1: no guidance; of --checkpoint).", default=None
    )
    solver: str | None = command.flag(
        "ddim, ddpm, dpmpp_2m, heun, flow_euler or flow_heun; by default the model's.", default=None
    )
    seed: int = command.flag("The same seed gives the same video.", default=0)
    negative_prompt: str | None = command.flag("What to steer away from.", default=None)
    fps: float | None = command.flag("Frames per second of the file; by default the model's.", default=None)
    captions: bool = command.flag(
        "Write each prompt into a .txt beside its video, where `walt evaluate` looks for it.", default=False
    )
    mesh: str = command.flag(
        "How devices share the work, such as data=2,fsdp=2,tensor=2; by default each makes videos of its own.",
        default="",
    )
    scale: int | None = command.flag(
        "Show every pixel as SCALE x SCALE; by default enough for a shorter side of 256.", default=None
    )


def main(argv: Sequence[str]) -> None:
    """Samples and writes; `argv` is [program, --flag=value, ...]."""
    rest, prompts = split_prompts(argv)
    arguments = command.parse(Arguments, rest)
    if Path(arguments.output).suffix.lower() not in SUFFIXES:
        raise command.CommandError(f"--output must end in {', '.join(SUFFIXES)}, got {arguments.output!r}")
    if arguments.captions and Path(arguments.output).suffix.lower() == ".png":
        raise command.CommandError("--captions is for videos; a contact sheet shows its prompts")
    if arguments.fps is not None and not 0 < arguments.fps <= 1000:
        raise command.CommandError(f"--fps must be between 0 and 1000, got {arguments.fps}")
    if arguments.scale is not None and not 1 <= arguments.scale <= 64:
        raise command.CommandError(f"--scale must be between 1 and 64, got {arguments.scale}")
    mesh = MeshConfig.parse(arguments.mesh)
    arguments.initialize()  # imports jax: errors in flags need not wait for it
    output = command.output_file(arguments.output)

    import jax

    from walt.generation.cascade import Cascade

    checkpoints = (arguments.checkpoint, *arguments.cascade)
    model = Cascade.load(checkpoints, mesh)
    for checkpoint, pipeline in zip(checkpoints, model.stages):
        print(f"{checkpoint}: {pipeline.describe()}")
    names = ("num_frames", "height", "width", "steps", "guidance", "solver", "seed", "negative_prompt")
    start = time.monotonic()
    videos = model.generate(prompts, **{name: getattr(arguments, name) for name in names})
    if jax.process_index() > 0:
        return
    base, *others = (pipeline.sampler for pipeline in model.stages)
    steps = "+".join(str(number) for number in (arguments.steps or base.steps, *(sampler.steps for sampler in others)))
    first = base.guidance if arguments.guidance is None else arguments.guidance
    guidance = "+".join(f"{scale:g}" for scale in (first, *(sampler.guidance for sampler in others)))
    count, frames, height, width = videos.shape[:4]
    print(
        f"made {count} x {frames} frames of {height}x{width} in {time.monotonic() - start:.1f} s, compilation included: "
        f"{steps} steps, guidance {guidance}, seed {arguments.seed}"
    )
    scale = arguments.scale or max(1, -(-256 // min(height, width)))
    for path, prompt in write(videos, prompts, output, arguments.fps or model.fps, scale):
        shown = f" (every pixel {scale}x{scale})" if scale > 1 and path.suffix != ".png" else ""
        print(f"wrote {path}{shown}: {prompt}")
        if arguments.captions:
            path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")


def split_prompts(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes every `--prompt` but the first out of a command line: (the rest, all prompts)."""
    rest: list[str] = []
    prompts: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in ("--prompt", "-prompt"):
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, "")
        if not prompts:
            rest.append(f"--prompt={value}")
        prompts.append(value)
    return rest, prompts


def write(
    videos: UInt8[np.ndarray, "n t h w 3"], prompts: Sequence[str], output: Path, fps: float, scale: int = 1
) -> list[tuple[Path, str]]:
    """Writes videos as the suffix of `output` says; returns (file, what it shows) for each file written."""
    if output.suffix.lower() == ".png":
        media.contact_sheet(videos, output, labels=prompts)
        return [(output, "; ".join(prompts))]
    paths = [output] if len(prompts) == 1 else [output.with_stem(f"{output.stem}_{i}") for i in range(len(prompts))]
    for path, video in zip(paths, videos):
        media.write_video(path, video, fps, scale=scale)
    return list(zip(paths, prompts))


if __name__ == "__main__":
    command.run(main)
