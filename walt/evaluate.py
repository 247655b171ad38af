"""Measure generated videos against real ones.

    walt evaluate --real=data/atari --generated=samples --json=result.json --report=result.html

`--real` is a prepared data set with a held-out split. `--generated` is a folder of mp4, webm or gif files, each with its
prompt in a .txt file beside it or in captions.csv / captions.jsonl (fields file and caption); or a prepared data set. The
label of a clip (the game) is the field `label` there, the name of the subfolder, or that of the real clips captioned so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from walt import command

if TYPE_CHECKING:
    from walt.evaluation import Clips, EvaluationResult

NOT_YET = (
    "Note: the Fréchet video distance (FVD) and its protocols are not part of this release; "
    "none of these figures is comparable with one."
)

MAX_REAL_CLIPS = 2048


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of `walt evaluate`."""

    real: str = command.flag("Prepared data set of real clips (see walt prepare).")
    generated: str = command.flag("Folder of generated videos with their prompts, or a prepared data set.")
    protocol: str = command.flag("Name of the protocol; this release has atari-mini alone.", default="atari-mini")
    json: str | None = command.flag("File to write the result to, as JSON.", default=None)
    report: str | None = command.flag(
        "HTML file to write the samples and their nearest training clips to.", default=None
    )


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes; `argv` is [program, --flag=value, ...]."""
    arguments = command.parse(Arguments, argv)

    from walt.evaluation import result, source  # numpy and scikit-learn: flag errors need not wait for them

    result.check_protocol(arguments.protocol)
    json, report = (command.output_file(path) if path else None for path in (arguments.json, arguments.report))
    heldout = source.read_clips(arguments.real, "heldout", limit=MAX_REAL_CLIPS)
    generated = source.read_generated(arguments.generated, heldout, source.caption_labels(arguments.real))
    training = source.PreparedClips(arguments.real, "train")
    found = result.evaluate_clips(heldout, generated=generated, training=training, protocol=arguments.protocol)
    print(f"{len(generated)} generated clips, {len(heldout)} real held-out clips, protocol {arguments.protocol}")
    for name, value in found.headline().items():
        shown = "not defined" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"  {name:32s} {shown}")
    print(NOT_YET)
    if json:
        json.write_text(found.to_json(), encoding="utf-8")
        print(f"Result: {json}")
    if report:
        against = f"{len(generated)} clips from {arguments.generated} against {len(heldout)} real held-out clips."
        print(f"Report: {_write_report(report, found, generated, against)}")


def _write_report(path: Path, found: EvaluationResult, generated: Clips, summary: str) -> Path:
    from walt.evaluation import bars, environment, report

    page = report.Report(
        title="Evaluation of generated videos",
        summary=summary,
        result=found,
        bars=bars.atari_mini_bars(found),
        generated=generated,
        environment=environment.describe_environment(),
    )
    return report.write_report(page, path)


if __name__ == "__main__":
    command.run(main)
