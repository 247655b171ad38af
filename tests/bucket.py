"""A bucket that is a folder, where opening a file to append to it overwrites it, as gcsfs does."""

from pathlib import Path

from etils.epath import backend, gpath


class HttpError(Exception):
    """What a request that fails raises: no OSError."""


class Bucket:
    """Stands in for what epath reaches `gs://` by.

    Attributes:
      down: whether every request fails.
    """

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.down = folder, False
        monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
        monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", self)

    def __getattr__(self, name):
        def call(*paths, **options):
            return getattr(backend.os_backend, name)(*map(self._local, paths), **options)

        return call

    def open(self, path, mode):
        local = self._local(path)
        if not mode.startswith("r"):
            Path(local).parent.mkdir(parents=True, exist_ok=True)  # buckets have no folders
        return backend.os_backend.open(local, mode.replace("a", "w"))

    def glob(self, path):
        return [f"gs://{Path(found).relative_to(self.folder)}" for found in backend.os_backend.glob(self._local(path))]

    def _local(self, path):
        if self.down:
            raise HttpError("503 Service Unavailable")
        return str(self.folder / str(path).removeprefix("gs://"))
