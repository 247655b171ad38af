"""The plans that are checked in, configs/plans: of which programs, and whether they are of the present configs and compiler.

    python launch/plans.py                # makes those that are missing or stale, one after another; stopped, it goes on where it was
    python launch/plans.py --list         # says which these are
    python launch/plans.py NAME …         # makes these, whether stale or not

The checksum of its config and the version of libtpu tell a stale plan; a change of the model's code does not, after which all are to be made again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "plans"


@dataclass(frozen=True)
class Pod:
    """A program of a shipped config on a pod.

    Attributes:
      what: as for `walt plan`.
      overrides: of the config, by dotted key.
    """

    config: str
    topology: str
    what: str = "train"
    num_slices: int = 1
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        slices = f"{self.num_slices}x" if self.num_slices > 1 else ""
        return "-".join([self.config.replace("/", "."), f"{slices}{self.topology}", self.what]).replace(":", ".")

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.json"

    def command(self) -> list[str]:
        """What makes it."""
        flags = [f"--config={self.config}", f"--topology={self.topology}", f"--what={self.what}"]
        flags += [f"--num_slices={self.num_slices}"] if self.num_slices > 1 else []
        flags += [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return [sys.executable, "-m", "walt.plan", *flags, f"--json={self.file}"]


def over(fsdp: int, **axes: int) -> dict[str, str]:
    """Overrides for a mesh with parameters over so many devices."""
    return {f"training.mesh.{axis}": str(size) for axis, size in {"data": 1, "fsdp": fsdp, **axes}.items()}


SMALL = Pod("t2v/base_3b:mini", "v5e:2x2", overrides={**over(4), "data.batch_size": "8"})
FULL = {"transformer.remat": "full"}
PODS = (
    SMALL,
    Pod("t2v/base_3b", "v5p:4x4x4", overrides=over(16, data=4)),
    Pod("classes/ucf101_xl", "v5e:8x8", overrides={**over(8, data=8), **FULL}),
    Pod("t2v/base_3b", "v4:4x4x4", overrides={**over(64), **FULL}),
    Pod("t2v/base_3b", "v6e:8x8", overrides={**over(16, data=4), **FULL}),
    Pod("t2v/base_3b", "v5e:8x8", overrides={**over(64), **FULL}),
    Pod("t2v/base_3b", "tpu7x:2x4x4", overrides=over(16, data=4)),
    Pod("t2v/super_2x", "v6e:8x8", overrides=over(16, data=4)),
    Pod("t2v/base_3b", "v5p:4x4x4", num_slices=2, overrides=over(16, data=4, slice=2)),
    Pod("autoencoder/t2v_128", "v5e:2x4", "encode"),
    Pod("autoencoder/t2v_128", "v5e:2x4", "decode"),
    Pod("autoencoder/t2v_128", "v5p:2x4x4"),  # 8 videos a chip, see walt/autoencoder/convolution.py
    Pod("t2v/base_3b", "v5p:2x2x2", "sample", overrides=over(8)),
)


def pinned_libtpu() -> str:
    """The version that the extra `tpu` asks for."""
    found = re.search(r'"libtpu==([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def stale(pod: Pod) -> str | None:
    """Why a plan is to be made again, in words; None if it is present."""
    from walt import config
    from walt.experiment import parse
    from walt.experiment.plans import checksum

    if not pod.file.is_file():
        return "there is none yet"
    plan = json.loads(pod.file.read_text(encoding="utf-8"))
    if plan["versions"]["libtpu"] != pinned_libtpu():
        return f"it is of libtpu {plan['versions']['libtpu']}, and setup.py pins {pinned_libtpu()}"
    asked = (pod.config, pod.topology, pod.what, pod.num_slices, dict(pod.overrides))
    if asked != tuple(plan[key] for key in ("config", "topology", "what", "num_slices", "overrides")):
        return "it is of other flags"
    present = parse(config.apply_overrides(config.load(pod.config), pod.overrides))
    return "its config has changed" if plan["config_checksum"] != checksum(present) else None


def main(argv: Sequence[str]) -> int:
    """Makes what is asked for; 1 if any could not be made."""
    names = [argument for argument in argv if argument != "--list"]
    if unknown := sorted(set(names) - {pod.name for pod in PODS}):
        print(f"there is no plan {unknown[0]!r}; there are {', '.join(pod.name for pod in PODS)}", file=sys.stderr)
        return 2
    chosen = [pod for pod in PODS if pod.name in names or (not names and stale(pod))]
    if "--list" in argv:
        for pod in PODS:
            print(f"{pod.name}: {stale(pod) or 'present'}")
        return 0
    failed = []
    for number, pod in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {pod.name}", flush=True)
        began = time.monotonic()
        if subprocess.run(pod.command(), cwd=ROOT).returncode:
            failed.append(pod.name)
        print(f"[{number}/{len(chosen)}] {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(f"not made: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main(sys.argv[1:]))
