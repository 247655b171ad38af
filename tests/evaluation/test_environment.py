import json
import resource
import subprocess
import sys

import numpy as np

from walt.evaluation import environment as e


def test_every_value_is_json_and_describes_this_process():
    values = e.describe_environment()
    assert json.loads(json.dumps(values)) == values
    assert values["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert values["packages"]["numpy"] == np.__version__
    assert values["cores"] >= 1 and values["memory_gb"] > 0.1
    assert e.package_version("no-such-package-at-all") is None


def test_peak_memory_covers_what_was_held_and_never_falls():
    """In a process of its own: this one may have held gigabytes before, all of which would have to be held again. A shell starts it, since what a process
    held before it became another program counts as that one's."""
    program = """if True:
        import numpy as np
        from walt.evaluation import environment as e

        before = e.peak_memory_gb()
        block = np.ones(int(before * 1e9) + 60_000_000, np.uint8)
        held = e.peak_memory_gb()
        assert held >= block.nbytes / 1e9, (before, held)
        del block
        assert e.peak_memory_gb() >= held >= before
    """
    subprocess.run(["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, program], check=True)


def test_peak_memory_counts_a_finished_child():
    subprocess.run([sys.executable, "-c", f"x = bytes({200 * 10**6}).replace(bytes(1), b'1')"], check=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    assert e.peak_memory_gb() >= own + 0.199


def test_processor_model_is_read_from_the_system(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast Chip 9000\nmodel name\t: Other\n")
    assert e.processor_model(file) == "Fast Chip 9000"
    e.processor_model(tmp_path / "missing")  # does not raise


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_of_a_checkout_and_its_changes(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    (tmp_path / "other.txt").write_text("somebody's own\n")
    assert e.git_commit(package) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert e.git_commit(package) is None  # a package installed inside somebody's repository is not of its commit
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "second")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert e.git_commit(package) == head
    (package / "a.py").write_text("2\n")
    assert e.git_commit(package) == head + "-dirty"
