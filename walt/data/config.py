"""What a loader is told."""

import dataclasses

from walt.config import ConfigError


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What to load and how.

    Attributes:
      path: a folder made by `walt prepare`.
      split: "train" or "heldout".
      batch_size: rows of a global batch, that is, of one step of all processes together.
      seed: of the order of examples and the choice of captions.
      image_fraction: share of the rows of every batch that are stacks of independent stills (latents only), rounded to
        whole rows.
      workers: loader processes; 0 reads in threads, which is faster for small data sets.
      prefetch: batches prepared ahead (by every worker).
      caption_length: tokens of a caption, longer ones are cut.
      cache_megabytes: decoded examples kept in memory up to this much; used without workers only.
      max_bad_records: how many records may be unusable, and are replaced by others, before the run stops with the list;
        those that all processes have met, over all starts of the run.
      max_example_megabytes: largest example that is decoded.
      retry_seconds: how long a read that fails is tried again.
      max_worker_restarts: how often workers that were killed (by the system, short of memory, or by a crash in a decoder) are
        replaced.
    """

    path: str = ""
    split: str = "train"
    batch_size: int = 16
    seed: int = 0
    image_fraction: float = 0.0
    workers: int = 0
    prefetch: int = 2
    caption_length: int = 24
    cache_megabytes: int = 512
    max_bad_records: int = 100
    max_example_megabytes: int = 1024
    retry_seconds: float = 30.0
    max_worker_restarts: int = 3

    def __post_init__(self) -> None:
        for field, low in (("batch_size", 1), ("prefetch", 1), ("caption_length", 1), ("max_example_megabytes", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field} must be at least {low}, got {getattr(self, field)}.")
        for field in ("seed", "workers", "cache_megabytes", "max_bad_records", "retry_seconds", "max_worker_restarts"):
            if getattr(self, field) < 0:
                raise ConfigError(f"{field} must not be negative, got {getattr(self, field)}.")
        if not 0.0 <= self.image_fraction <= 1.0:
            raise ConfigError(f"image_fraction must lie between 0 and 1, got {self.image_fraction}.")
        # Rounding to whole rows must not turn a mixture into videos or stills alone.
        if 0.0 < self.image_fraction < 1.0 and self.image_rows in (0, self.batch_size):
            least, most = 1 / self.batch_size, 1 - 1 / self.batch_size
            between = (
                f", or between {least:.4g} and {most:.4g}"
                if least < most
                else f", or {most:.4g}"
                if least == most
                else ", or batch_size larger"
            )
            raise ConfigError(
                f"image_fraction {self.image_fraction:g} makes {self.image_rows} of the {self.batch_size} rows of a batch "
                f"stills; it must be 0 or 1{between}."
            )

    @property
    def image_rows(self) -> int:
        """How many rows of a global batch are stacks of images."""
        return round(self.batch_size * self.image_fraction)
