"""The process that plays and records one Atari game: `python -m walt.data.recipes.emulator JOB_AS_JSON`.

Prints "clip" for every finished clip and, at the end, one JSON line with the shards written. Started by `atari.py`.
"""

import dataclasses
import json
import sys
import zlib
from collections.abc import Iterator

import ale_py
import numpy as np
from ale_py import roms
from PIL import Image

from walt.data import media, records
from walt.data.recipes import atari_captions

CLIPS_PER_SESSION = 8
WARM_UP = (90, 900)  # emulator frames of random play before the first clip of a session
GAP = (15, 120)  # and between its clips
HOLD = (4, 40)  # emulator frames for which the random player holds an action
# A still screen (ball lost, car parked) teaches nothing: in this share of the frame pairs something must visibly move,
# that is, one pixel in a thousand (four at 64x64) must change by so many grey levels of 255.
MIN_MOVING = 0.75
MIN_PIXELS = 0.00097
VISIBLE = 24
MAX_ATTEMPTS = 200


class RecordingError(RuntimeError):
    """A game that cannot be recorded as asked."""


class Player:
    """One emulator session: a game from reset on, played at random, all of it determined by the seeds.

    Args:
      game: ROM name.
      seeds: integers that identify the session.
      size: (height, width) of the recorded frames.
      frame_skip: emulator frames per recorded frame.
    """

    def __init__(self, game: str, seeds: list[int], size: tuple[int, int], frame_skip: int):
        self._rng = np.random.default_rng(seeds)
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("random_seed", int(self._rng.integers(2**31)))
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("frame_skip", 1)
        path = roms.get_rom_path(game)
        if path is None:
            raise RecordingError(f"ale-py has no ROM for {game}")
        self._ale.loadROM(path)
        self._actions = self._ale.getMinimalActionSet()
        self._nameable = [a for a in self._actions if a.name in atari_captions.ACTIONS]
        self._size = size
        self._frame_skip = frame_skip

    def wander(self, low: int, high: int) -> None:
        """Plays at random for a random number of emulator frames."""
        remaining = int(self._rng.integers(low, high))
        while remaining > 0:
            action = self._actions[self._rng.integers(len(self._actions))]
            hold = min(remaining, int(self._rng.integers(*HOLD)))
            for _ in range(hold):
                self._act(action)
            remaining -= hold

    def record(self, num_frames: int) -> tuple[np.ndarray, str] | None:
        """Holds one action and films it: (uint8 [T,H,W,3], action name), or None if the game ends meanwhile."""
        action = self._nameable[self._rng.integers(len(self._nameable))]
        frames = np.empty((num_frames, *self._size, 3), np.uint8)
        for index in range(num_frames):
            for _ in range(self._frame_skip - 1):
                if self._act(action):
                    return None
            before = self._ale.getScreenRGB()
            if self._act(action):
                return None
            # Consoles draw some sprites on every other frame only; the maximum of two frames shows them all.
            screen = np.maximum(before, self._ale.getScreenRGB()) if self._frame_skip > 1 else self._ale.getScreenRGB()
            height, width = self._size
            frames[index] = np.asarray(Image.fromarray(screen).resize((width, height), Image.Resampling.BOX))
        return frames, action.name

    def _act(self, action: ale_py.Action) -> bool:
        self._ale.act(action)
        over = self._ale.game_over()
        if over:
            self._ale.reset_game()
        return over


def moves(video: np.ndarray) -> bool:
    """Whether a clip (uint8 [T,H,W,3]) shows visible motion most of the time."""
    if len(video) < 2:
        return True
    change = np.abs(np.diff(video.astype(np.int16), axis=0)).max(axis=3) >= VISIBLE
    return float(np.mean(change.mean(axis=(1, 2)) >= MIN_PIXELS)) >= MIN_MOVING


def clips(job: dict, split: str, count: int) -> Iterator[dict]:
    """Yields `count` records of the job's game for a split."""
    written = session = 0
    while written < count:
        # The split is part of the seed: no session is shared between splits.
        seeds = [job["seed"], ("train", "heldout").index(split), zlib.crc32(job["game"].encode()), session]
        player = Player(job["game"], seeds, (job["height"], job["width"]), job["frame_skip"])
        player.wander(*WARM_UP)
        for _ in range(min(CLIPS_PER_SESSION, count - written)):
            video, action = _moving_clip(player, job)
            yield {
                "id": f"{job['game']}-{split}-{written:06d}",
                "clip": media.encode_clip(video),
                "captions": atari_captions.captions(job["game"], action),
                "label": job["game"],
                "fps": 60.0 / job["frame_skip"],
            }
            written += 1
            player.wander(*GAP)
        session += 1


def _moving_clip(player: Player, job: dict) -> tuple[np.ndarray, str]:
    for _ in range(MAX_ATTEMPTS):
        result = player.record(job["num_frames"])
        if result is not None and moves(result[0]):
            return result
        player.wander(*GAP)
    raise RecordingError(f"nothing moved in {MAX_ATTEMPTS} tries to record {job['game']}; leave it out of --games")


def main() -> None:
    job = json.loads(sys.argv[1])
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    shards = {}
    for split, count in (("train", job["clips"]), ("heldout", job["heldout"])):
        with records.RecordWriter(job["directory"], split, job["num_shards"], job["shard"], shards_here=1) as writer:
            for record in clips(job, split, count):
                writer.write(record)
                print("clip", flush=True)
            shards[split] = dataclasses.asdict(writer.close().shards[0])
    print(json.dumps(shards), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (RecordingError, OSError) as error:  # one line, for the parent to show
        sys.exit(" ".join(str(error).split()))
