"""Show a model on a local web page.

    walt serve                                    the small model that comes with the package
    walt serve --checkpoint=runs/t2v --port=8000

The page takes a prompt, shows the video as it comes into being, and keeps what was made in a gallery, with how it was made. It needs
`pip install walt[serve]`. It is bound to this machine alone unless --host says otherwise, and has no password.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from walt import command
from walt.parallel.config import MeshConfig


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of `walt serve`."""

    checkpoint: str = command.flag("Shipped model, bundle or work directory.", default="mini")
    cascade: tuple[str, ...] = command.flag(
        "Bundles or work directories of super-resolution models that follow, comma-separated.", default=()
    )
    host: str = command.flag("Address to bind to.", default="127.0.0.1")
    port: int = command.flag("Port to bind to.", default=7860)
    max_frames: int = command.flag("Most frames of a video, made or given.", default=257)
    max_side: int = command.flag("Longest side of a video, in pixels.", default=1024)
    max_steps: int = command.flag("Most denoising steps.", default=250)
    max_megabytes: int = command.flag("Largest file that is taken.", default=64)
    max_queue: int = command.flag("Requests that may wait; one is served at a time.", default=16)
    mesh: str = command.flag("How devices share the work, see `walt sample`.", default="")


def main(argv: Sequence[str]) -> None:
    """Serves until it is interrupted; `argv` is [program, --flag=value, ...]."""
    arguments = command.parse(Arguments, argv)
    if not 1 <= arguments.port <= 65535:
        raise command.CommandError(f"--port must be between 1 and 65535, got {arguments.port}")
    mesh = MeshConfig.parse(arguments.mesh)

    try:
        from walt.serving import page
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "starlette", "uvicorn"):  # the others come with the first
            raise
        raise command.CommandError("the page needs Gradio: install it with `pip install walt[serve]`") from error
    from walt.generation.cascade import Cascade
    from walt.serving.limits import Limits

    told = dataclasses.asdict(arguments)
    limits = Limits(**{each.name: told[each.name] for each in dataclasses.fields(Limits) if each.name in told})
    checkpoints = (arguments.checkpoint, *arguments.cascade)
    model = Cascade.load(checkpoints, mesh)
    model.stages[-1].check_size(None, None, None)  # it generates
    page.serve(model, limits, arguments.host, arguments.port, f"WALT: {Path(arguments.checkpoint).name}")


if __name__ == "__main__":
    command.run(main)
