"""Coverage-guided fuzzing of the readers, for whoever has time and `pip install atheris`; the test suite does without.

    python tests/fuzz/atheris_readers.py "torch program" -max_total_time=300
    python tests/fuzz/atheris_readers.py all -max_total_time=60             one reader after the other

Further arguments are libFuzzer's. It starts from the seeds of `readers.py` and ends with the first input that makes a reader raise
something else than its own error, take longer than 5 s or use more than 2 GB, and writes that input to `crash-…`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `import readers`

try:
    import atheris
except ImportError:
    print("atheris is not installed, so nothing was fuzzed: pip install atheris")
    raise SystemExit(0) from None

LIMITS = ("-timeout=5", "-rss_limit_mb=2048", "-max_len=65536")


def main(name: str, arguments: list[str]) -> None:
    """Fuzzes one reader until libFuzzer ends the process."""
    with atheris.instrument_imports(include=["walt"]):
        from readers import all_readers
    with tempfile.TemporaryDirectory() as temporary:
        readers = all_readers(Path(temporary) / "seeds")
        if name not in readers:
            raise SystemExit(f"there is no reader {name!r}; the readers are: all, {', '.join(readers)}")
        reader, corpus = readers[name], Path(temporary) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(reader.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)

        def read(data: bytes) -> None:
            try:
                reader.read(data or b"\0", Path(temporary) / "files")
            except reader.errors:
                pass

        atheris.Setup([sys.argv[0], *LIMITS, *arguments, str(corpus)], read)
        atheris.Fuzz()


def main_of_all(arguments: list[str]) -> int:
    """Each reader in a process of its own, since libFuzzer ends the process; the number of readers that failed."""
    from readers import all_readers

    with tempfile.TemporaryDirectory() as temporary:
        names = list(all_readers(Path(temporary)))
    failed = [name for name in names if subprocess.run([sys.executable, __file__, name, *arguments]).returncode]
    print(f"{len(names)} readers fuzzed; failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    if sys.argv[1] == "all":
        raise SystemExit(main_of_all(sys.argv[2:]))
    main(sys.argv[1], sys.argv[2:])
