"""Send a video of any length through the autoencoder and back, in constant memory.

    walt reconstruct in.mp4 out.mp4 --checkpoint=mini

Frames are read, encoded, decoded and written in chunks, with the result of the whole at once. Sizes that the autoencoder
does not take are padded and cropped back. Sound is not kept.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from walt import command
from walt.data import media

SUFFIXES = (".mp4", ".webm")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of `walt reconstruct`."""

    input: str = command.flag("Video file to read.", positional=True)
    output: str = command.flag("File to write: .mp4 or .webm.", positional=True)
    checkpoint: str = command.flag("Shipped model, bundle or work directory.", default="mini")
    chunk: int = command.flag("Frames processed at a time; more are faster and need more memory.", default=16)
    tile: int | None = command.flag(
        "Process frames in tiles of this many pixels a side, for frames too large for memory; approximate.",
        default=None,
    )
    side_by_side: bool = command.flag("Show the original beside the reconstruction.", default=False)


def main(argv: Sequence[str]) -> None:
    """Reconstructs a file; `argv` is [program, input, output, --flag=value, ...]."""
    arguments = command.parse(Arguments, argv)
    source, output = (Path(path).expanduser() for path in (arguments.input, arguments.output))
    if output.suffix.lower() not in SUFFIXES:
        raise command.CommandError(f"the output must end in {' or '.join(SUFFIXES)}, got {arguments.output!r}")
    if arguments.chunk < 1:
        raise command.CommandError(f"--chunk must be at least 1, got {arguments.chunk}")
    if output.resolve() == source.resolve():
        raise command.CommandError(f"input and output are the same file, {source}")
    media.frame_times(source)  # an unreadable file shows before a model is loaded

    from walt.generation.files import reconstruct_file  # imports jax: errors in flags need not wait for it
    from walt.generation.pipeline import load

    start = time.monotonic()
    pipeline = load(arguments.checkpoint)
    tiling = pipeline.tiling(arguments.tile) if arguments.tile else None
    error = reconstruct_file(
        pipeline, source, output, chunk=arguments.chunk, tiling=tiling, side_by_side=arguments.side_by_side
    )
    print(
        f"wrote {output}: {error.frames} frames, PSNR {error.psnr():.2f} dB before compression, "
        f"{error.frames / (time.monotonic() - start):.1f} frames/s, compilation included"
    )


if __name__ == "__main__":
    command.run(main)
