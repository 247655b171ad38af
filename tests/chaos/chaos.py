"""A soak: the mini text-to-video model is trained over and over while faults are injected at random times, and compared with a clean run.

    python tests/chaos/chaos.py --minutes=60 [--schedule=exact|elastic|both] [--seed=0] [--output=runs/chaos]

*exact*: kill -9, SIGTERM, SIGSTOP, a full disk, shards that cannot be read for a while; one process. In the end parameters, optimiser, averages
and consumed examples must be those of the clean run, to the bit. *elastic*: every start has another number of processes and devices, one of
which is killed or told to end, and some records are corrupt for good; consumed and skipped examples must be those of the clean run on the
same data, losses to `TOLERANCE`, and the parameters in the end to `UPDATES` of one update. In both, every start must begin at its checkpoint
and leave out or repeat no step. The times are those of the seed; what the machine does meanwhile is not. A fault was *met* if it hit a run that
trained, broke a read, or cost a checkpoint: one that came while the program was imported proves less. Writes `report.json` and `report.txt`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import jobs

# Quick compilation in place of quick programs, as in tests/conftest.py; the processes that train inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(jobs.ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import recorder
import tiny
import trainings

from walt import jsonlines
from walt.training.metrics import read_metrics
from walt.training.preemption import PREEMPTED

STEPS, EVERY = 60, 10
SECONDS_PER_STEP = 0.1
TOLERANCE = 1e-3  # of a loss, relative, over the whole run on changing devices
UPDATES = 0.01  # how far parameters may be off, in updates of the clean run's last ones: less than any that is lost or repeated
BAD = (3, 7)  # records of the elastic schedule
KINDS = {"exact": ("kill", "terminate", "stop", "full disk", "unreadable"), "elastic": ("kill", "terminate")}
LONGEST_START = 600.0  # seconds to the first step, on a machine that is busy with other things
LONGEST_JOIN = 90  # seconds that a process waits for the others to join
NOTICED = 5.0  # seconds from a fault to what is noticed of it
LONGEST_END = 120.0  # from the end of a job's first process to that of its last
SETTINGS = {
    "training.num_steps": STEPS,
    "training.checkpoint_every": EVERY,
    "training.watchdog.heartbeat_seconds": 0.2,
    "samples_every": 0,
    "heldout_every": 1000,
    "data.cache_megabytes": 0,
    "data.max_bad_records": 100,
}


class Job:
    """One start of the training command, in one or several processes."""

    def __init__(
        self, world: Path, folder: Path, latents: Path, processes: int = 1, devices: int = 1, disk_full: str = "stop"
    ):
        self.workdir, self.record = folder / "disk" / "run", folder / "examples"
        settings = SETTINGS | {"data.path": latents, "training.saving.disk_full": disk_full}
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        command = [
            recorder.__file__,
            str(self.record),
            f"--config={world / 'config.py'}",
            f"--workdir={self.workdir}",
            *flags,
        ]
        self.began = time.time()
        self.processes = jobs.start(
            [*command, "--heartbeat_timeout=30", f"--initialization_timeout={LONGEST_JOIN}"],
            processes,
            devices,
            environment={"RECORDER_SECONDS": str(SECONDS_PER_STEP)},
        )
        # Read all the while: a process whose output nobody reads stands still one day.
        self._ended = ThreadPoolExecutor(1).submit(jobs.ended, self.processes, 2 * LONGEST_START)

    def trains(self) -> bool:
        """Whether this start has got as far as its first step."""
        try:
            heartbeat = json.loads((self.workdir / "heartbeat.0.json").read_text())
        except (OSError, ValueError):
            return False
        return heartbeat["time"] > self.began and heartbeat["phase"] in ("training", "waiting for data", "saving")

    def runs(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait(self, seconds: float, until=lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.runs() and not until():
            time.sleep(0.05)

    def ended(self) -> list[jobs.Ended]:
        """What became of the processes, in the end."""
        return self._ended.result()


class Disk:
    """Where a run lies: a file system of its own, which can be filled, or a folder for which saves are told that it is full."""

    def __init__(self, folder: Path):
        self.path, self.flag, self.filler = folder / "disk", folder / "examples.full", folder / "disk" / "filler"
        self.path.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "walt-chaos", str(self.path)]
        try:
            self.mounted = subprocess.run(mount, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.mounted = False

    def fill(self) -> None:
        if not self.mounted:
            self.flag.touch()
            return
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))

    def free(self) -> None:
        (self.filler if self.mounted else self.flag).unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True)


class Soak:
    """One schedule: a clean run, then runs with faults until the time is up."""

    def __init__(self, schedule: str, world: Path, folder: Path, seed: int):
        self.schedule, self.world, self.folder, self.seed = schedule, world, folder, seed
        self.kinds = shuffled(KINDS[schedule], random.Random(f"{seed}/{schedule}"))
        self.latents = world / ("latents" if schedule == "exact" else "bad_latents")
        self.report = {
            "schedule": schedule,
            "seed": seed,
            "faults": {kind: {"injected": 0, "met": 0, "survived": 0} for kind in KINDS[schedule]},
            "minutes": 0.0,
            "rounds": 0,
            "starts": 0,
            "examples": {"consumed": 0, "lost": 0, "repeated": 0},
            "failures": [],
        }
        if schedule == "exact":
            self.report |= {"arrays_differing": 0, "unreadable": "injected: reads fail with EIO"}
        else:
            self.report |= {"shapes": {}, "largest_loss_error": 0.0, "tolerance": TOLERANCE}
            self.report |= {"largest_error_in_updates": 0.0, "tolerance_in_updates": UPDATES}
            self.report |= {"skipped": [], "skipped_unlisted": 0}

    def run(self, seconds: float) -> dict:
        """The report, which is also written after every run, so that a soak that is ended has one."""
        clean = self.folder / "clean"
        disk = Disk(clean)
        try:
            job = Job(self.world, clean, self.latents)
            [ended] = job.ended()
            if ended.status:
                raise SystemExit(f"the clean run failed:\n{ended.errors}")
            self.clean = job
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                self.round(began + seconds)
                self.report["minutes"] = round((time.monotonic() - began) / 60, 1)
                (self.folder / "report.json").write_text(json.dumps(self.report, indent=2) + "\n")
        finally:
            disk.close()
        return self.report

    def round(self, end: float) -> None:
        """One run to its end, with faults as long as there is time."""
        number = self.report["rounds"]
        chance = random.Random(f"{self.seed}/{self.schedule}/{number}")
        injected, met = Counter(), Counter()
        folder = self.folder / f"round{number}"
        disk = Disk(folder)
        if self.schedule == "exact":
            self.report["full_disk"] = "mounted" if disk.mounted else "injected: saves fail with ENOSPC"
        try:
            failure = self.train(folder, disk, chance, injected, met, end) or self.compare(folder)
        finally:
            disk.close()
        self.report["rounds"] += 1
        for kind, count in injected.items():
            self.report["faults"][kind]["injected"] += count
            self.report["faults"][kind]["met"] += met[kind]
            self.report["faults"][kind]["survived"] += 0 if failure else count
        if failure:
            self.report["failures"].append(f"round {number}: {failure}")
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def train(
        self, folder: Path, disk: Disk, chance: random.Random, injected: Counter, met: Counter, end: float
    ) -> str | None:
        """Starts the run until it has finished; returns what went wrong."""
        while True:
            shape = chance.choice([(1, 1), (1, 2), (2, 1), (2, 2)]) if self.schedule == "elastic" else (1, 1)
            job = Job(self.world, folder, self.latents, *shape, disk_full=chance.choice(["stop", "go_on"]))
            self.report["starts"] += 1
            if self.schedule == "elastic":
                counts, name = self.report["shapes"], "{} x {}".format(*shape)
                counts[name] = counts.get(name, 0) + 1
            hits, told, times = [], Counter(), []
            while job.runs() and (time.monotonic() < end or not injected):
                anywhere = chance.random() < 0.25 and not hits  # in its start, or once it trains
                job.wait(LONGEST_START, until=lambda job=job, anywhere=anywhere: anywhere or job.trains())
                job.wait(chance.uniform(0.0, 4.0) + (3.0 if anywhere else 0.0))
                if job.runs():
                    hits.append(next(self.kinds))
                    injected[hits[-1]] += 1
                    process = chance.choice([each for each in job.processes if each.poll() is None] or job.processes)
                    told[process.pid] += hits[-1] == "terminate"
                    met[hits[-1]] += hits[-1] in ("kill", "terminate", "stop") and job.trains()
                    began = time.time()
                    self.inject(hits[-1], process, job, disk, folder, chance)
                    times.append((hits[-1], began, time.time()))
            found = job.ended()
            disk.free()
            met.update(kind for kind, began, ended in times if self.was_met(folder, kind, began, ended))
            if max(process.seconds for process in found) > LONGEST_END:
                return f"after {', '.join(hits) or 'nothing'}, a process went on alone"
            if all(process.status == 0 for process in found):
                return None
            if max(told.values(), default=0) > 1 and len(found) > 1:
                continue  # at the second signal a process ends at once, and the others, which it does not wait for, somehow
            if not any(self.expected(kind, found) for kind in hits):
                said = "; ".join(f"{process.status}: {process.errors[-600:]}" for process in found)
                return f"after {', '.join(hits) or 'nothing'}, a start ended with {said}"

    @staticmethod
    def inject(kind: str, process: subprocess.Popen, job: Job, disk: Disk, folder: Path, chance: random.Random) -> None:
        pause = chance.uniform(0.5, 2.0)
        if kind == "kill":
            process.kill()
        elif kind == "terminate":
            process.send_signal(signal.SIGTERM)
        elif kind == "stop":
            process.send_signal(signal.SIGSTOP)
            time.sleep(pause)
            process.send_signal(signal.SIGCONT)
        elif kind == "full disk":
            disk.fill()
            job.wait(2 * pause)
            disk.free()
        elif kind == "unreadable":
            flag = folder / "examples.unreadable"
            flag.touch()
            job.wait(pause)
            flag.unlink()

    @staticmethod
    def was_met(folder: Path, kind: str, began: float, ended: float) -> bool:
        """Whether something failed by such a fault, or a moment later, when it was noticed."""
        record = folder / "examples.met"
        entries = jsonlines.read(record) if record.exists() else ()
        return any(entry["kind"] == kind and began <= entry["time"] <= ended + NOTICED for entry in entries)

    @staticmethod
    def expected(kind: str, found: list[jobs.Ended]) -> bool:
        """Whether a job that did not finish ended as it should after such a fault."""
        statuses = [process.status for process in found]
        if kind == "kill":
            return -signal.SIGKILL in statuses
        if kind == "terminate":  # before Python reads signals, in its first second, one ends a process as always
            alone = [process for process in found if process.status != PREEMPTED]
            missed = all("seconds for the others" in process.errors for process in alone)  # it had not joined them yet
            return all(status in (0, PREEMPTED) for status in statuses) or -signal.SIGTERM in statuses or missed
        if kind == "full disk":
            said = found[0].errors.lower()
            return statuses == [1] and ("the disk is full" in said or "no space left" in said)
        return False

    def compare(self, folder: Path) -> str | None:
        """What differs from the clean run."""
        ours, theirs = folder / "disk" / "run", self.clean.workdir
        try:
            consumed, clean = trainings.consumed(folder / "examples"), trainings.consumed(self.clean.record)
        except AssertionError as error:
            return str(error)
        a, b = (Counter(json.dumps([step, ids]) for step, ids in found.items()) for found in (consumed, clean))
        lost, repeated = (b - a).total(), (a - b).total()
        examples = self.report["examples"]
        examples["consumed"] += sum(len(ids) for ids in consumed.values())
        examples["lost"] += lost
        examples["repeated"] += repeated
        if lost or repeated or trainings.digest(consumed) != trainings.digest(clean):
            return f"the batches of {lost} steps were lost and those of {repeated} repeated"
        if self.schedule == "exact":
            differing = trainings.differing(ours, theirs)
            self.report["arrays_differing"] += len(differing)
            return f"arrays differ: {', '.join(differing[:5])}" if differing else None
        return (
            self.compare_losses(ours, theirs)
            or self.compare_weights(ours, theirs)
            or self.compare_skipped(ours, theirs)
        )

    def compare_losses(self, ours: Path, theirs: Path) -> str | None:
        a, b = ({r["step"]: r["loss"] for r in read_metrics(w) if "loss" in r} for w in (ours, theirs))
        if a.keys() != b.keys():
            return "the logs are of other steps"
        error = max(abs(a[step] - b[step]) / abs(b[step]) for step in b)
        self.report["largest_loss_error"] = max(error, self.report["largest_loss_error"])
        return f"a loss is off by {error:.2g}" if error > TOLERANCE else None

    def compare_weights(self, ours: Path, theirs: Path) -> str | None:
        a, b = trainings.arrays(ours), trainings.arrays(theirs)
        if a["training/step"] != b["training/step"]:
            return f"the state is that of step {a['training/step']}"
        update = trainings.distance(trainings.arrays(theirs, STEPS - EVERY), b) / EVERY
        error = trainings.distance(a, b) / update
        self.report["largest_error_in_updates"] = max(error, self.report["largest_error_in_updates"])
        return f"the parameters are off by {error:.2g} updates" if error > UPDATES else None

    def compare_skipped(self, ours: Path, theirs: Path) -> str | None:
        a, b = (skipped(workdir) for workdir in (ours, theirs))
        self.report["skipped"] = [f"{'still' if still else 'example'} {example}" for example, still in sorted(b)]
        self.report["skipped_unlisted"] += len(b - a)
        return f"other records are listed as skipped: {sorted(a ^ b)}" if a != b else None


def shuffled(kinds: tuple[str, ...], chance: random.Random) -> Iterator[str]:
    """All kinds in some order, then all in another, and so on: none is left to luck."""
    while True:
        yield from chance.sample(kinds, len(kinds))


def skipped(workdir: Path) -> set[tuple[int, bool]]:
    lines = [line for file in workdir.glob("skipped_records.*.jsonl") for line in file.read_text().splitlines()]
    return {(entry["example"], entry["is_image"]) for entry in map(json.loads, lines)}


def text(report: dict) -> str:
    lines = [
        f"{report['schedule']}: {report['rounds']} runs of {STEPS} steps in {report['starts']} starts, {report['minutes']} minutes of faults, "
        f"seed {report['seed']}"
    ]
    for kind, count in report["faults"].items():
        lines.append(
            f"  {kind:<12} {count['injected']:>4} injected, {count['met']:>4} met, {count['survived']:>4} survived"
        )
    for name, value in report.items():
        if name not in ("schedule", "seed", "minutes", "rounds", "starts", "faults", "failures"):
            lines.append(f"  {name}: {value}")
    return "\n".join([*lines, *(f"  FAILED {failure}" for failure in report["failures"])])


def soak(minutes: float, schedules: list[str], seed: int, output: Path) -> list[dict]:
    """The reports of some schedules, each with so many minutes of faults."""
    shutil.rmtree(output, ignore_errors=True)
    world = output / "data"
    world.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        tiny.make(world)
        tiny.with_bad_records(world, BAD)
    reports = [Soak(schedule, world, output / schedule, seed).run(60 * minutes) for schedule in schedules]
    (output / "report.json").write_text(json.dumps(reports, indent=2) + "\n")
    (output / "report.txt").write_text("\n".join(map(text, reports)) + "\n")
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of faults, for each schedule")
    parser.add_argument("--schedule", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a folder that is emptied first; by default a new one")
    arguments = parser.parse_args()
    schedules = list(KINDS) if arguments.schedule == "both" else [arguments.schedule]
    output = arguments.output or Path(tempfile.mkdtemp(prefix="walt-chaos-"))
    reports = soak(arguments.minutes, schedules, arguments.seed, output.resolve())
    print((output / "report.txt").read_text(), end="")
    print(f"wrote {output / 'report.json'}")
    return 1 if any(report["failures"] for report in reports) else 0


if __name__ == "__main__":
    raise SystemExit(main())
