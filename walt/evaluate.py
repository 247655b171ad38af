"""Measure generated videos against real ones, or what an autoencoder makes of real ones.

    walt evaluate --real=data/atari --generated=samples --json=result.json --report=result.html
    walt evaluate --real=data/film --autoencoder=runs/film --json=result.json --report=result.html

`--real` is a prepared data set with a held-out split. `--generated` is a folder of mp4, webm or gif files, each with its
prompt in a .txt file beside it or in captions.csv / captions.jsonl (fields file and caption); or a prepared data set. The
label of a clip (the game) is the field `label` there, the name of the subfolder, or that of the real clips captioned so.

`--autoencoder` sends the held-out clips through an autoencoder and back, and sets PSNR, SSIM and sharpness of the result beside
those of simple codes that keep no more numbers. Of a work directory the report also shows both over the hours of training.

Started on every host of a TPU pod, the devices of all share the autoencoder's work; the first host measures and writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from walt import command

if TYPE_CHECKING:
    from walt.evaluation.report import Report

NOT_YET = (
    "Note: the Fréchet video distance (FVD) and its protocols are not part of this release; "
    "none of these figures is comparable with one."
)

MAX_REAL_CLIPS = 2048


@dataclasses.dataclass(frozen=True)
class Arguments(command.HostArguments):
    """Flags of `walt evaluate`."""

    real: str = command.flag("Prepared data set of real clips (see walt prepare).")
    generated: str | None = command.flag(
        "Folder of generated videos with their prompts, or a prepared data set.", default=None
    )
    autoencoder: str | None = command.flag(
        "Shipped model, bundle or work directory whose autoencoder to measure, in place of generated videos.",
        default=None,
    )
    protocol: str = command.flag(
        "How to measure generated videos; this release has atari-mini alone.", default="atari-mini"
    )
    json: str | None = command.flag("File to write the result to, as JSON.", default=None)
    report: str | None = command.flag(
        "HTML file to write the samples and their nearest training clips to.", default=None
    )


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes; `argv` is [program, --flag=value, ...]."""
    arguments = command.parse(Arguments, argv)

    if (arguments.generated is None) == (arguments.autoencoder is None):
        raise command.CommandError("give either --generated, videos to measure, or --autoencoder, a model to measure")
    from walt.evaluation import result  # numpy and scikit-learn: flag errors need not wait for them

    result.check_protocol(arguments.protocol)
    arguments.initialize()
    json, report = (command.output_file(path) if path else None for path in (arguments.json, arguments.report))
    import jax

    if arguments.autoencoder is not None:
        _evaluate_autoencoder(arguments.real, arguments.autoencoder, json, report)
    elif jax.process_index() == 0:  # the figures are computed on the host alone
        assert arguments.generated is not None
        _evaluate_generated(arguments.real, arguments.generated, arguments.protocol, json, report)


def _evaluate_generated(real: str, videos: str, protocol: str, json: Path | None, report: Path | None) -> None:
    from walt.data.records import read_manifest
    from walt.evaluation import bars, result, source
    from walt.evaluation.report import Report

    heldout = source.read_clips(real, "heldout", limit=MAX_REAL_CLIPS)
    generated = source.read_generated(videos, heldout, source.caption_labels(real))
    training = source.PreparedClips(real, "train")
    found = result.evaluate_clips(heldout, generated=generated, training=training, protocol=protocol)
    print(f"{len(generated)} generated clips, {len(heldout)} real held-out clips, protocol {protocol}")
    for name, value in found.headline().items():
        shown = "not defined" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"  {name:32s} {shown}")
    print(NOT_YET)
    if json:
        json.write_text(found.to_json(), encoding="utf-8")
        print(f"Result: {json}")
    if report:
        page = Report(
            title="Evaluation of generated videos",
            summary=f"{len(generated)} clips from {videos} against {len(heldout)} real held-out clips.",
            result=found,
            bars=bars.atari_mini_bars(found),
            generated=generated,
            fps=read_manifest(real).fps,
        )
        _write_report(page, report)


def _evaluate_autoencoder(real: str, checkpoint: str, json: Path | None, report: Path | None) -> None:
    import jax

    from walt.data.records import read_manifest
    from walt.evaluation.report import Report
    from walt.evaluation.source import read_clips
    from walt.experiment.comparison import compare_with_simple_codes, progress_of
    from walt.experiment.progress import write_json
    from walt.generation.pipeline import load

    heldout = read_clips(real, "heldout", limit=MAX_REAL_CLIPS)
    frames, height, width = heldout.clip_shape[:3]
    comparison, progress = compare_with_simple_codes(load(checkpoint), heldout), progress_of(checkpoint)
    if jax.process_index() > 0:
        return
    print(f"{len(heldout)} held-out clips of {frames}x{height}x{width}")
    for name, figures in comparison.figures.items():
        sharpness = "not defined" if figures.sharpness is None else f"{figures.sharpness:.2f}"
        print(
            f"  {name:12s} {comparison.coded[name].kept:>15s}  PSNR {figures.psnr:5.2f} dB  SSIM {figures.ssim:.3f}  "
            f"sharpness {sharpness}"
        )
    if json:
        codes = {
            name: {"kept": comparison.coded[name].kept, **dataclasses.asdict(figures)}
            for name, figures in comparison.figures.items()
        }
        write_json(
            json, {"clips": len(heldout), "clip_shape": heldout.clip_shape, "codes": codes, "progress": progress}
        )
        print(f"Result: {json}")
    if report:
        manifest = read_manifest(real)
        page = Report(
            title="Fidelity of an autoencoder",
            summary=f"{checkpoint} on {len(heldout)} held-out clips of {frames}x{height}x{width} from {real}. "
            + manifest.extra.get("attribution", ""),
            comparison=comparison,
            progress=progress,
            fps=manifest.fps,
        )
        _write_report(page, report)


def _write_report(page: Report, path: Path) -> None:
    from walt.evaluation import environment, report

    print(
        f"Report: {report.write_report(dataclasses.replace(page, environment=environment.describe_environment()), path)}"
    )


if __name__ == "__main__":
    command.run(main)
