"""Make videos from prompts.

    walt sample --prompt="a game of Freeway, the chicken moves up" --output=out.mp4
    walt sample --checkpoint=runs/t2v --prompt="..." --prompt="..." --output=sheet.png --seed=7

The suffix of `--output` decides: .mp4, .webm, .gif and .webp are videos (one file per prompt, numbered if there are several),
.png is a contact sheet, one row of frames per prompt. Without `--checkpoint` the small model that comes with the
package is used. `--cascade` names super-resolution models, the smallest first, that make its videos larger.

`--task` names another task than making a video of a prompt, and flags give it what it takes:

    walt sample --task=animate --image=boxer.png --prompt="a game of Boxing" --output=boxing.mp4
    walt sample --task=extend --video=in.mp4 --seconds=2 --direction=both --prompt="..." --output=out.mp4
    walt sample --task=connect --first=a.mp4 --second=b.mp4 --prompt="..." --output=out.mp4
    walt sample --task=inpaint --video=in.mp4 --mask=white_where_new.png --prompt="..." --output=out.mp4
    walt sample --task=keyframes --keyframes=0:a.png,16:b.png --prompt="..." --output=out.mp4
    walt sample --task=stream --prompt="..." --prompt="..." --num_frames=1000 --output=out.mp4
    walt sample --task=storyboard --storyboard=shots.yaml --output=out.mp4

The others are predict, loop, edit, vary, outpaint (--height, --width) and interpolate (--factor).

A prompt may weigh its words: "a (red car:1.3)". `--rewriter` has prompts written out before the model reads them: rules:FILE (JSON:
{"replace": {"car": "a red car"}, "after": ", by day"}), command:PROGRAM (prompt on its standard input, the new one on its output), or the
address of a server that speaks OpenAI's chat protocol, such as http://127.0.0.1:8080/v1 (key, if any, in WALT_REWRITER_KEY).

Every file says how it was made, and `--like=FILE` makes it again; flags beside it change what they name.

Started on every host of a TPU pod, the devices of all share the work, and the first host writes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from walt import command
from walt.config import nearest
from walt.data import caption_files, media
from walt.generation.catalogue import INPUTS, OPTIONS, TASKS
from walt.parallel.config import MeshConfig

if TYPE_CHECKING:
    from walt.generation.cascade import Cascade
    from walt.generation.pipeline import Pipeline
    from walt.generation.record import Record

FREE_TASKS = ("keyframes", "stream", "storyboard")
"""Those that are in no table."""
VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".webp")
SUFFIXES = (*VIDEO_SUFFIXES, ".png")


@dataclasses.dataclass(frozen=True)
class Arguments(command.HostArguments):
    """Flags of `walt sample`."""

    output: str = command.flag("File to write: .mp4, .webm, .gif, .webp, or .png for a contact sheet.")
    prompt: str | None = command.flag("What the video should show; repeat the flag for several videos.", default=None)
    prompts_file: str | None = command.flag("File of prompts, one per line, in place of --prompt.", default=None)
    like: str | None = command.flag("File that was made by this command, to make it again.", default=None)
    other_model: bool = command.flag("Take --like's settings for another model than it was made with.", default=False)
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
    seed: int | None = command.flag("The same seed gives the same video; by default 0.", default=None)
    batch_size: int = command.flag("Videos computed at a time.", default=16)
    negative_prompt: str | None = command.flag("What to steer away from.", default=None)
    rewriter: str | None = command.flag(
        "What writes prompts out: rules:FILE, command:PROGRAM or an address.", default=None
    )
    rewriter_model: str = command.flag("What the address calls its language model.", default="default")
    rewriter_timeout: float = command.flag("Seconds that the rewriter may take for a prompt.", default=30.0)
    task: str = command.flag("What to do: see above.", default="generate")
    image: str | None = command.flag("Picture that the video begins with.", default=None)
    video: str | None = command.flag("Video that the task is about.", default=None)
    first: str | None = command.flag("Video that a transition comes from.", default=None)
    second: str | None = command.flag("Video that it goes to.", default=None)
    mask: str | None = command.flag("Picture that is white where the video is painted anew.", default=None)
    keyframes: tuple[str, ...] = command.flag("FRAME:PICTURE, comma-separated.", default=())
    storyboard: str | None = command.flag("JSON or YAML file of shots.", default=None)
    seconds: float | None = command.flag("Seconds to add, or of a transition.", default=None)
    direction: str | None = command.flag("Of extend: forward, backward or both.", default=None)
    strength: float | None = command.flag("How much of the video is forgotten, 0 to 1.", default=None)
    factor: int | None = command.flag("Times as many frames per second.", default=None)
    keep_pixels: bool | None = command.flag("Keep the very pixels of what is given.", default=None)
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
    check(arguments)
    if arguments.prompts_file is not None:
        prompts = caption_files.read_lines(Path(arguments.prompts_file))
        if not prompts:
            raise command.CommandError(f"--prompts_file={arguments.prompts_file} holds no prompt: write one per line")
    mesh = MeshConfig.parse(arguments.mesh)
    arguments.initialize()  # imports jax: errors in flags need not wait for it
    output = command.output_file(arguments.output)

    import jax

    from walt.generation import programs
    from walt.generation import record as records
    from walt.generation.cascade import Cascade

    programs.keep_compiled()
    like = None if arguments.like is None else records.read_record(arguments.like)
    checkpoints = (arguments.checkpoint, *arguments.cascade)
    model = Cascade.load(checkpoints, mesh)
    for checkpoint, pipeline in zip(checkpoints, model.stages):
        print(f"{checkpoint}: {pipeline.describe()}")
    if arguments.task in FREE_TASKS:
        perform(arguments, prompts, model.stages[0], output)
        return
    inputs, clip_fps = read_inputs(arguments, model)
    record = resolve(arguments, prompts, like, model, inputs, clip_fps)
    start = time.monotonic()
    videos = records.generate(model, record, inputs, arguments.batch_size)
    record = record.sized(videos)
    if jax.process_index() > 0:
        return
    others = [pipeline.sampler for pipeline in model.stages[1:]]
    steps = "+".join(str(number) for number in (record.steps, *(sampler.steps for sampler in others)))
    guidance = "+".join(f"{scale:g}" for scale in (record.guidance, *(sampler.guidance for sampler in others)))
    count, frames, height, width = videos.shape[:4]
    print(
        f"made {count} x {frames} frames of {height}x{width} in {time.monotonic() - start:.1f} s, compilation included: "
        f"{steps} steps, guidance {guidance}, seed {record.seed}"
    )
    scale = arguments.scale or max(1, -(-256 // min(height, width)))
    for path, prompt in write(videos, record, output, scale):
        shown = f" (every pixel {scale}x{scale})" if scale > 1 and path.suffix != ".png" else ""
        print(f"wrote {path}{shown}: {prompt}")
        if arguments.captions:
            path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")


def check(arguments: Arguments) -> None:
    """Refuses flags that cannot be, before anything is loaded."""
    sources = [name for name in ("prompt", "prompts_file") if getattr(arguments, name) is not None]
    if arguments.task not in TASKS and arguments.task not in FREE_TASKS:
        names = (*TASKS, *FREE_TASKS)
        raise command.CommandError(
            f"--task must be one of {', '.join(names)}, got {arguments.task!r}{nearest(arguments.task, names)}"
        )
    _check_inputs(arguments)
    if not sources and arguments.like is None and arguments.task != "storyboard":
        raise command.CommandError("--prompt is missing: what the video should show (or --prompts_file, or --like)")
    if len(sources) == 2:
        raise command.CommandError("--prompt and --prompts_file both name prompts; give one of them")
    if arguments.rewriter is not None and not sources:
        raise command.CommandError(
            "--rewriter is for new prompts, and those of --like have been through one: give --prompt too"
        )
    if arguments.other_model and arguments.like is None:
        raise command.CommandError("--other_model is for --like, which is missing")
    if Path(arguments.output).suffix.lower() not in SUFFIXES:
        raise command.CommandError(f"--output must end in {', '.join(SUFFIXES)}, got {arguments.output!r}")
    if arguments.captions and Path(arguments.output).suffix.lower() == ".png":
        raise command.CommandError("--captions is for videos; a contact sheet shows its prompts")
    if arguments.fps is not None and not 0 < arguments.fps <= 1000:
        raise command.CommandError(f"--fps must be between 0 and 1000, got {arguments.fps}")
    if arguments.scale is not None and not 1 <= arguments.scale <= 64:
        raise command.CommandError(f"--scale must be between 1 and 64, got {arguments.scale}")


def _check_inputs(arguments: Arguments) -> None:
    takes = {"keyframes": {"keyframes"}, "storyboard": {"storyboard"}, "stream": {"video"}}.get(arguments.task)
    if takes is None:
        takes = {*TASKS[arguments.task].inputs, *TASKS[arguments.task].options}
    for name in (*INPUTS, *OPTIONS, "keyframes", "storyboard"):
        given = getattr(arguments, name) not in (None, ())
        if given and name not in takes:
            raise command.CommandError(f"--{name} is not for --task={arguments.task}")
    needed = [*TASKS[arguments.task].inputs] if arguments.task in TASKS else [*takes - {"video"}]
    for name in needed:
        if getattr(arguments, name) in (None, ()):
            raise command.CommandError(f"--{name} is missing, which --task={arguments.task} needs")
    if arguments.cascade and arguments.task != "generate":
        raise command.CommandError(f"--task={arguments.task} is of one model: leave --cascade out")


def read_inputs(arguments: Arguments, model: Cascade) -> tuple[dict[str, np.ndarray], float | None]:
    """The files of a task, and the frame rate of the first video among them."""
    from walt.generation.inputs import read_input

    size, inputs, rates = model.stages[0].check_size(), {}, []
    for name, kind in TASKS[arguments.task].inputs.items():
        inputs[name], rate = read_input(kind, getattr(arguments, name), size)
        rates += [] if rate is None else [rate]
    return inputs, rates[0] if rates else None


def perform(arguments: Arguments, prompts: Sequence[str], pipeline: Pipeline, output: Path) -> None:
    """A task that takes more than a table says: writes its video, as it comes."""
    if output.suffix.lower() not in (".mp4", ".webm"):
        raise command.CommandError(f"--task={arguments.task} writes .mp4 or .webm, got {output}")
    chosen = {name: getattr(arguments, name) for name in ("steps", "guidance", "solver", "negative_prompt")}
    options: dict[str, Any] = {"seed": arguments.seed or 0, **chosen}
    if arguments.task == "storyboard":
        frames: Iterable[np.ndarray] = pipeline.storyboard(str(arguments.storyboard), **options)
    elif arguments.task == "keyframes":
        pictures = {frame: media.read_image(path) for frame, path in map(_keyframe, arguments.keyframes)}
        frames = pipeline.keyframes(pictures, prompts[0], num_frames=arguments.num_frames, **options)
    else:
        video = None if arguments.video is None else media.read_video(arguments.video)[0]
        count = 60 * round(pipeline.fps) if arguments.num_frames is None else arguments.num_frames
        frames = islice(pipeline.stream(list(prompts), video=video, **options), count)
    count = 0
    with media.video_writer(output, arguments.fps or pipeline.fps) as write:
        for frame in frames:
            scale = arguments.scale or max(1, -(-256 // min(frame.shape[:2])))
            write(frame.repeat(scale, axis=0).repeat(scale, axis=1)[None])
            count += 1
    print(f"wrote {output}: {count} frames, conditioned by {pipeline.conditioning}")


def _keyframe(text: str) -> tuple[int, str]:
    frame, colon, path = text.partition(":")
    if not colon or not frame.isdigit():
        raise command.CommandError(f"--keyframes are FRAME:PICTURE, such as 0:first.png, got {text!r}")
    return int(frame), path


SETTINGS = ("negative_prompt", "num_frames", "height", "width", "fps", "steps", "guidance", "solver", "seed")


def resolve(
    arguments: Arguments,
    prompts: Sequence[str],
    like: Record | None,
    model: Cascade,
    inputs: Mapping[str, np.ndarray] = MappingProxyType({}),
    clip_fps: float | None = None,
) -> Record:
    """What is to be made: flags, behind them what `like` says, behind that what the model does by itself."""
    from walt.generation import record as records

    told = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    options = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    if clip_fps is not None and TASKS[arguments.task].clip_fps:
        options["clip_fps"] = clip_fps
    if arguments.task != "generate":
        told |= {"task": arguments.task, "options": options, "inputs": inputs}
    if like is not None:
        if not arguments.other_model:
            like.check_models(str(arguments.like), model)
        if like.task != arguments.task:
            raise command.CommandError(
                f"{arguments.like} was made by --task={like.task}: name that, with its files, beside --like"
            )
        told = like.settings() | told | ({"options": {**like.options, **options}} if options or like.options else {})
        if not prompts:
            return records.resolve(model, like.prompts, given=like.given, rewriter=like.rewriter, **told)
    if arguments.rewriter is None:
        return records.resolve(model, prompts, **told)

    import jax

    from walt.generation.rewriter import make_rewriter

    if jax.process_count() > 1:
        raise command.CommandError(
            "--rewriter could tell each host something else: have prompts rewritten before a job of several"
        )
    rewriter = make_rewriter(arguments.rewriter, model=arguments.rewriter_model, timeout=arguments.rewriter_timeout)
    written = [rewriter(prompt) for prompt in prompts]
    for before, after in zip(prompts, written):
        print(f"{before!r} is written out as {after!r}")
    return records.resolve(model, written, given=prompts, rewriter=rewriter.name, **told)


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
    videos: UInt8[np.ndarray, "n t h w 3"], record: Record, output: Path, scale: int = 1
) -> list[tuple[Path, str]]:
    """Writes videos as the suffix of `output` says, and into each file how it was made; returns (file, what it shows) for each."""
    prompts = record.prompts
    if output.suffix.lower() == ".png":
        media.contact_sheet(videos, output, labels=prompts, note=record.to_json())
        return [(output, "; ".join(prompts))]
    digits = len(str(len(prompts) - 1))  # so that names sort as prompts do
    paths = [output.with_stem(f"{output.stem}_{i:0{digits}}") for i in range(len(prompts))]
    paths = [output] if len(prompts) == 1 else paths
    for number, (path, video) in enumerate(zip(paths, videos)):
        media.write_video(path, video, record.fps, scale=scale, note=record.of_row(number).to_json())
    return list(zip(paths, prompts))


if __name__ == "__main__":
    command.run(main)
