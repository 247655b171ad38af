"""Recipe "atari": real footage of Atari 2600 games, played by a random player and recorded with ale-py.

Every game is recorded by a process of its own (`emulator.py`), because a bad ROM ends the process it runs in. Training
and held-out clips come from disjoint emulator sessions. The same arguments give the same clips, whatever `workers` is.
"""

import concurrent.futures
import dataclasses
import difflib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from walt.config import ConfigError
from walt.data import records
from walt.data.bar import progress_bar
from walt.data.recipes.common import option, warn_of_sizes

# Chosen by eye at 64x64: a person tells them apart, and something large enough moves nearly all the time.
GAMES = ("boxing", "enduro", "fishing_derby", "freeway", "ms_pacman", "riverraid", "road_runner", "seaquest")
EMULATOR_RATE = 60.0  # frames per second of an NTSC console


@dataclasses.dataclass(frozen=True)
class AtariConfig:
    """Arguments of the recipe; every field is a flag of `walt prepare atari`."""

    output: str = option("Folder to write; must be absent, empty, or hold just this data set.")
    games: tuple[str, ...] = option("Games to record, by ale-py's ROM names.", default=GAMES)
    clips: int = option("Training clips over all games.", default=1000)
    heldout: int = option("Held-out clips over all games, from other emulator seeds.", default=64)
    height: int = option("Height of a frame in pixels.", default=64)
    width: int = option("Width of a frame in pixels.", default=64)
    num_frames: int = option("Frames of a clip.", default=17)
    frame_skip: int = option("Emulator frames per clip frame; 4 gives 15 frames per second.", default=4)
    seed: int = option("Seed of the emulators and of the random player.", default=0)
    workers: int = option("Emulator processes at a time; 0: one per CPU core.", default=0)

    def __post_init__(self) -> None:
        if not self.games or len(set(self.games)) != len(self.games):
            raise ConfigError(f"games must be a list of one or more different games, got {self.games}.")
        for field in ("clips", "heldout"):
            if getattr(self, field) < len(self.games):
                raise ConfigError(
                    f"{field} must be at least 1 per game ({len(self.games)}), got {getattr(self, field)}."
                )
        for field in ("height", "width", "num_frames", "frame_skip"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1, got {getattr(self, field)}.")
        for field in ("seed", "workers"):
            if getattr(self, field) < 0:
                raise ConfigError(f"{field} must not be negative, got {getattr(self, field)}.")


def prepare(config: AtariConfig) -> records.Manifest:
    """Records the clips into `config.output` and returns the manifest.

    Raises:
      records.DatasetError: ale-py is missing, a game is unknown or cannot be recorded, or the folder is not free.
    """
    request = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output", "workers")}
    finished = records.already_prepared(config.output, "atari", request)
    if finished is not None:
        return finished
    check_games(config.games)
    warn_of_sizes(config)
    with records.new_dataset(config.output) as directory:
        splits = _record(config, directory)
        manifest = records.Manifest(
            name="atari",
            splits=splits,
            shapes={"clip": (config.num_frames, config.height, config.width, 3)},
            fps=EMULATOR_RATE / config.frame_skip,
            seed=config.seed,
            request=request,
            versions=records.package_versions("walt", "ale-py", "numpy", "pillow", "array_record"),
            extra={"labels": list(config.games)},
        )
        records.write_manifest(directory, manifest)
    return records.read_manifest(config.output)


def check_games(games: tuple[str, ...]) -> None:
    """Raises `DatasetError` if ale-py is missing or does not have one of the games."""
    if importlib.util.find_spec("ale_py") is None:
        raise records.DatasetError("The atari recipe needs ale-py; install it with `pip install walt[demo]`.")
    from ale_py import roms

    known = roms.get_all_rom_ids()
    for game in games:
        if game not in known:
            nearest = difflib.get_close_matches(game, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"the games are {', '.join(sorted(known))}."
            raise records.DatasetError(f"There is no game {game!r}; {hint}")


def _record(config: AtariConfig, directory: Path) -> dict[str, records.Split]:
    """Runs one emulator process per game, `workers` at a time, and joins what they wrote."""
    workers = min(config.workers or os.cpu_count() or 1, len(config.games))
    processes: list[subprocess.Popen] = []
    total = config.clips + config.heldout
    with (
        progress_bar(total=total, unit="clip", desc="recording") as bar,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        futures = [
            pool.submit(_run_emulator, _job(config, directory, index), processes, bar)
            for index in range(len(config.games))
        ]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:  # also KeyboardInterrupt: leave no emulator behind
            for future in futures:
                future.cancel()
            for process in processes:
                process.kill()
            raise
    parts = [future.result() for future in futures]
    splits = {}
    for split in ("train", "heldout"):
        shards = tuple(records.Shard(**part[split]) for part in parts)
        splits[split] = records.Split(sum(shard.count for shard in shards), shards)
    return splits


def _job(config: AtariConfig, directory: Path, index: int) -> dict:
    """What one emulator process is told: the recipe's arguments and its share of the clips."""
    job = dataclasses.asdict(config)
    job.update(directory=str(directory), game=config.games[index], shard=index, num_shards=len(config.games))
    for field in ("clips", "heldout"):
        share, rest = divmod(getattr(config, field), len(config.games))
        job[field] = share + (index < rest)
    return job


def _run_emulator(job: dict, processes: list[subprocess.Popen], bar: tqdm) -> dict:
    """Runs the process of one game to its end and returns the shards it wrote, by split."""
    # The child must find this very package, also when it is not installed.
    package_root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "walt.data.recipes.emulator", json.dumps(job)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        processes.append(process)
        shards = None
        assert process.stdout is not None
        for line in process.stdout:
            if line == "clip\n":
                bar.update()
            elif line.startswith("{"):
                shards = json.loads(line)
        code = process.wait()
        if code != 0 or shards is None:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            raise records.DatasetError(
                f"Recording {job['game']!r} failed (exit code {code}): {lines[-1] if lines else 'no message'}"
            )
    return shards
