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

    walt sample --task=loop --video=in.mp4 --prompt="..." --output=out.mp4        (closes a clip; without --video a new one)

The others are predict, edit, vary, outpaint (--height, --width) and interpolate (--factor). A stream is written as it is made, one --prompt for each
window of frames, the last for all that follow, and lasts a minute unless --num_frames says otherwise.

A prompt may weigh its words: "a (red car:1.3)". `--rewriter` has prompts written out before the model reads them: rules:FILE (JSON:
{"replace": {"car": "a red car"}, "after": ", by day"}), command:PROGRAM (prompt on its standard input, the new one on its output), or the
address of a server that speaks OpenAI's chat protocol, such as http://127.0.0.1:8080/v1 (key, if any, in WALT_REWRITER_KEY).

Every file says how it was made, and `--like=FILE` makes it again, given the same files; flags beside it change what they name.

Started on every host of a TPU pod, the devices of all share the work, and the first host writes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from walt import command
from walt.config import nearest
from walt.data import caption_files, media
from walt.generation.catalogue import INPUTS, OPTIONS, SIZES, TASKS
from walt.parallel.config import MeshConfig

if TYPE_CHECKING:
    from walt.generation.cascade import Cascade
    from walt.generation.inputs import Input, Inputs
    from walt.generation.record import Record

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".webp")
SUFFIXES = (*VIDEO_SUFFIXES, ".png")
STREAMED = (".mp4", ".webm")
"""Those that are written frame by frame."""


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
    task: str | None = command.flag("What to do: see above; by default generate, or what --like did.", default=None)
    image: str | None = command.flag("Picture that the video begins with.", default=None)
    video: str | None = command.flag("Video that the task is about.", default=None)
    first: str | None = command.flag("Video that a transition comes from.", default=None)
    second: str | None = command.flag("Video that it goes to.", default=None)
    mask: str | None = command.flag("Picture that is white where the video is painted anew.", default=None)
    keyframes: tuple[str, ...] = command.flag("FRAME:PICTURE, comma-separated.", default=())
    storyboard: str | None = command.flag("JSON or YAML file of shots.", default=None)
    seconds: float | None = command.flag("Seconds to add, of a transition, or of a loop.", default=None)
    direction: str | None = command.flag("Of extend: forward, backward or both.", default=None)
    strength: float | None = command.flag("How much of the video is forgotten, 0 to 1.", default=None)
    factor: int | None = command.flag("Times as many frames per second.", default=None)
    context_noise: float | None = command.flag(
        "Of stream: noise with which a window is shown the pictures before it, against drift; by default 0.1.",
        default=None,
    )
    visits: int | None = command.flag(
        "Times that each step of a task is taken, which helps models that know by replacement; by default the model's.",
        default=None,
    )
    reuse: float | None = command.flag(
        "How much that is new may be left out between steps, 0 to 1, for speed: 0.1 is cautious; by default the model's.",
        default=None,
    )
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
    arguments = dataclasses.replace(arguments, task=task_of(arguments, like))
    checkpoints = (arguments.checkpoint, *arguments.cascade)
    model = Cascade.load(checkpoints, mesh)
    for checkpoint, pipeline in zip(checkpoints, model.stages):
        print(f"{checkpoint}: {pipeline.describe()}")
    inputs, clip_fps = read_inputs(arguments, model, like)
    record = resolve(arguments, prompts, like, model, inputs, clip_fps)
    start = time.monotonic()
    record, written = make(model, record, inputs, arguments, output)
    if jax.process_index() > 0:
        return
    others = [pipeline.sampler for pipeline in model.stages[1:]]
    steps = "+".join(str(number) for number in (record.steps, *(sampler.steps for sampler in others)))
    guidance = "+".join(f"{scale:g}" for scale in (record.guidance, *(sampler.guidance for sampler in others)))
    known = f", conditioned by {record.conditioning}" if record.conditioning else ""
    print(
        f"made {len(record.rows())} x {record.num_frames} frames of {record.height}x{record.width} in {time.monotonic() - start:.1f} s, "
        f"compilation included: {steps} steps, guidance {guidance}, seed {record.seed}{known}"
    )
    scale = enlargement(arguments, record)
    for path, prompt in written:
        shown = f" (every pixel {scale}x{scale})" if scale > 1 and path.suffix != ".png" else ""
        print(f"wrote {path}{shown}: {prompt}")
        if arguments.captions and record.prompts:
            path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")


def check(arguments: Arguments) -> None:
    """Refuses flags that cannot be, before anything is loaded."""
    sources = [name for name in ("prompt", "prompts_file") if getattr(arguments, name) is not None]
    task = arguments.task or "generate"
    if task not in TASKS:
        raise command.CommandError(f"--task must be one of {', '.join(TASKS)}, got {task!r}{nearest(task, TASKS)}")
    if arguments.like is None:
        _check_inputs(arguments, task)
    shots = TASKS[task].words == "shots"
    if sources and shots:
        raise command.CommandError(f"--{sources[0]} is not for --task={task}: each of its shots has a prompt")
    if not sources and arguments.like is None and not shots and "prompt" not in TASKS[task].optional:
        raise command.CommandError("--prompt is missing: what the video should show (or --prompts_file, or --like)")
    if not sources and arguments.like is None and not shots and arguments.negative_prompt is not None:
        raise command.CommandError("--negative_prompt is for what has a prompt: give --prompt too")
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


def task_of(arguments: Arguments, like: Record | None) -> str:
    """The task of the flags, or of the file that is made again, of which the flags that it needs are asked for."""
    if like is None:
        return arguments.task or "generate"
    if like.task not in TASKS:
        raise command.CommandError(f"{arguments.like} was made by a task that this version does not know")
    if arguments.task not in (None, like.task):
        raise command.CommandError(f"{arguments.like} was made by --task={like.task}, not by --task={arguments.task}")
    _check_inputs(arguments, like.task, like)
    return like.task


def _check_inputs(arguments: Arguments, task: str, like: Record | None = None) -> None:
    takes = TASKS[task]
    for name in (*INPUTS, *OPTIONS, *SIZES):
        of_task = name in takes.inputs or name in takes.options or name in takes.sizes
        if getattr(arguments, name) not in (None, ()) and not of_task:
            raise command.CommandError(f"--{name} is not for --task={task}")
    held = () if like is None else like.held()
    needed = [name for name in takes.inputs if name not in takes.optional and name not in held]
    given = [] if like is None else [name.partition(".")[0] for name in like.inputs]
    for name in (*needed, *given):
        if getattr(arguments, name, ()) in (None, ()):
            by = f"--task={task} needs" if name in needed else f"{arguments.like} was made with"
            raise command.CommandError(f"--{name} is missing, which {by}")
    if arguments.cascade and task != "generate":
        raise command.CommandError(f"--task={task} is of one model: leave --cascade out")
    _keyframes(arguments.keyframes)


def read_inputs(arguments: Arguments, model: Cascade, like: Record | None) -> tuple[dict[str, Input], float | None]:
    """The files of a task, and the frame rate of the first video among them."""
    from walt.generation.inputs import read_input

    size, rates = model.stages[0].check_size(), []
    inputs = {} if like is None else dict(like.held())
    for name, kind in TASKS[str(arguments.task)].inputs.items():
        source = _keyframes(arguments.keyframes) if kind == "pictures" else getattr(arguments, name)
        if source is not None:
            inputs[name], rate = read_input(kind, source, size)
            rates += [] if rate is None else [rate]
    return inputs, rates[0] if rates else None


def _keyframes(texts: Sequence[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for text in texts:
        frame, colon, path = text.partition(":")
        if not colon or not frame.isdecimal() or len(frame) > 9:
            raise command.CommandError(f"--keyframes are FRAME:PICTURE, such as 0:first.png, got {text[:80]!r}")
        if int(frame) in found:
            raise command.CommandError(f"--keyframes names frame {frame} twice")
        found[int(frame)] = path
    return found


SETTINGS = ("negative_prompt", "num_frames", "height", "width", "fps", "steps", "guidance", "solver", "seed")


def resolve(
    arguments: Arguments,
    prompts: Sequence[str],
    like: Record | None,
    model: Cascade,
    inputs: Inputs = MappingProxyType({}),
    clip_fps: float | None = None,
) -> Record:
    """What is to be made: flags, behind them what `like` says, behind that what the model does by itself."""
    from walt.generation import record as records

    takes = TASKS[str(arguments.task)]
    told = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    options = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    if clip_fps is not None and takes.clip_fps:
        options["clip_fps"] = clip_fps
    told |= {"task": arguments.task, "options": options, "inputs": inputs}
    if like is not None:
        if not arguments.other_model:
            like.check_models(str(arguments.like), model)
        others = like.others(str(arguments.like), inputs)
        for line in others:
            print(line)
        if not others:
            options.pop("clip_fps", None)  # which it remembers, or was made without
        remembered = like.settings()
        remembered["fps"] *= takes.speed({**like.options, **options}) / takes.speed(like.options)
        told = remembered | told | ({"options": {**like.options, **options}} if options or like.options else {})
        if not prompts:
            prompts = like.prompts if takes.words != "shots" else ()
            return records.resolve(model, prompts, given=like.given, rewriter=like.rewriter, **told)
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


def enlargement(arguments: Arguments, record: Record) -> int:
    """As how many pixels, each way, a file shows one."""
    return arguments.scale or max(1, -(-256 // min(record.height, record.width)))


def make(
    model: Cascade, record: Record, inputs: Inputs, arguments: Arguments, output: Path
) -> tuple[Record, list[tuple[Path, str]]]:
    """Makes and, on the first host, writes what a record says: (the record, with the size of what was made, what `write` returns)."""
    import jax

    from walt.generation import record as records

    first = jax.process_index() == 0
    if TASKS[record.task].words == "prompts" and output.suffix.lower() in STREAMED:
        frames = records.perform(model, record, inputs)
        if first:
            return record, write_as_made(frames, record, output, enlargement(arguments, record))
        for _ in frames:
            pass
        return record, []
    videos = records.generate(model, record, inputs, arguments.batch_size)
    record = record.sized(videos)
    return record, write(videos, record, output, enlargement(arguments, record)) if first else []


def write(
    videos: UInt8[np.ndarray, "n t h w 3"], record: Record, output: Path, scale: int = 1
) -> list[tuple[Path, str]]:
    """Writes videos as the suffix of `output` says, and into each file how it was made; returns (file, what it shows) for each."""
    rows = record.rows()
    if output.suffix.lower() == ".png":
        media.contact_sheet(videos, output, labels=[_words(row) for row in rows], note=record.to_json())
        return [(output, _words(record))]
    digits = len(str(len(rows) - 1))  # so that names sort as prompts do
    paths = [output.with_stem(f"{output.stem}_{i:0{digits}}") for i in range(len(rows))]
    paths = [output] if len(rows) == 1 else paths
    for path, video, row in zip(paths, videos, rows):
        media.write_video(path, video, record.fps, scale=scale, note=row.to_json())
    return [(path, _words(row)) for path, row in zip(paths, rows)]


def write_as_made(
    frames: Iterable[UInt8[np.ndarray, "h w 3"]], record: Record, output: Path, scale: int = 1
) -> list[tuple[Path, str]]:
    """`write` for a video that need not fit into memory."""
    with media.video_writer(output, record.fps, scale=scale, note=record.to_json()) as write:
        for frame in frames:
            write(frame[None])
    return [(output, _words(record))]


def _words(record: Record) -> str:
    return "; ".join(record.prompts) or "no prompt"


if __name__ == "__main__":
    command.run(main)
