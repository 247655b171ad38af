"""Stands in for gcloud: queued resources whose hosts are folders of this machine, and whose fate a scenario decides.

The folder $CLOUD holds `scenario.json`: `states` lists, for each time the request is made, what `describe` answers one
after the other (the last one from then on); a request that is not ACTIVE has lost its hosts. `silent` names hosts that do
not answer, `broken` a verb that fails. Every call is a line of `calls.jsonl`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])


def main(arguments: list[str]) -> int:
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    assert arguments[:3] == ["compute", "tpus", "queued-resources"], arguments
    verb, *words = arguments[3:]
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    scenario = json.loads((CLOUD / "scenario.json").read_text())
    if scenario.get("broken") == verb:
        print("PERMISSION_DENIED", file=sys.stderr)
        return 1
    file = CLOUD / "request.json"
    request = json.loads(file.read_text()) if file.exists() else {"made": 0, "hosts": None}
    code = globals()[verb](request, scenario, words, flags)
    file.write_text(json.dumps(request))
    return code


def create(request, scenario, words, flags) -> int:
    assert request["hosts"] is None, "there is a request of that name"
    request |= {"made": request["made"] + 1, "asked": 0}
    request["hosts"] = [f"{node}-{worker}" for node in range(int(flags.get("node-count", 1))) for worker in range(2)]
    for host in request["hosts"]:
        (CLOUD / "hosts" / host).mkdir(parents=True)
    return 0


def describe(request, scenario, words, flags) -> int:
    if request["hosts"] is None:
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    states = scenario["states"][min(request["made"], len(scenario["states"])) - 1]
    state = states[min(request["asked"], len(states) - 1)]
    request["asked"] += 1
    if state == "SUSPENDED":
        lose_hosts()
    print("WARNING: there is a newer gcloud", file=sys.stderr)
    print(state)
    return 0


def delete(request, scenario, words, flags) -> int:
    request["hosts"] = None
    lose_hosts()
    return 0


def lose_hosts() -> None:
    for pid in (CLOUD / "hosts").glob("*/walt/run/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
    shutil.rmtree(CLOUD / "hosts", ignore_errors=True)


def scp(request, scenario, words, flags) -> int:
    source, target = (word for word in words if not word.startswith("--"))
    for host in request["hosts"]:
        shutil.copy(source, CLOUD / "hosts" / host / target.partition(":")[2])
    return 0


def ssh(request, scenario, words, flags) -> int:
    chosen = [
        host for host in request["hosts"] if flags["node"] in ("all", host[0]) and flags["worker"] in ("all", host[2])
    ]
    codes = [255 if host in scenario.get("silent", ()) else on_host(host, flags["command"]) for host in chosen]
    return max(codes)


def on_host(host: str, command: str) -> int:
    home = CLOUD / "hosts" / host
    environment = {**os.environ, "HOME": str(home), "HOST": host}
    return subprocess.run(["bash", "-c", command], cwd=home, env=environment, timeout=30).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
