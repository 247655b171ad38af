"""The mesh as a config; imports no jax."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from walt.config import ConfigError


@dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each mesh axis; at most one axis may be -1: all devices that remain.

    `slice`: data parallel over slices joined by the data-centre network; `data`: data parallel; `fsdp`: data parallel
    with parameters and optimiser state sharded; `context`: positions of one example; `tensor`: heads and hidden
    features of one layer.
    """

    slice: int = 1
    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name, size in self.axis_sizes.items():
            if size < 1 and size != -1:
                raise ConfigError(f"{name} must be a number of devices, or -1 for all that remain, got {size}")
        free = [name for name, size in self.axis_sizes.items() if size == -1]
        if len(free) > 1:
            raise ConfigError(f"only one axis of the mesh may be -1, got {' and '.join(free)}")

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Axis name → size, outermost first."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def parse(cls, text: str) -> MeshConfig:
        """Of "fsdp=4,tensor=2", the other axes being as they are by default; `ConfigError` for anything else."""
        sizes: dict[str, int] = {}
        names = [field.name for field in dataclasses.fields(cls)]
        for part in filter(None, text.split(",")):
            name, _, size = part.partition("=")
            if name not in names or name in sizes or not size.removeprefix("-").isdecimal():
                raise ConfigError(
                    f"a mesh is written such as fsdp=4,tensor=2, with axes {', '.join(names)}, got {text!r}"
                )
            sizes[name] = int(size)
        return cls(**sizes)

    def resolve(self, num_devices: int) -> dict[str, int]:
        """The axis sizes for `num_devices` devices, -1 replaced; `ConfigError` if they do not multiply to that
        number.
        """
        sizes = self.axis_sizes
        fixed = 1
        for size in sizes.values():
            fixed *= 1 if size == -1 else size
        sizes = {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}
        total = fixed * (num_devices // fixed) if -1 in self.axis_sizes.values() else fixed
        if total != num_devices or total == 0:
            shape = " x ".join(f"{name}={size}" for name, size in self.axis_sizes.items())
            raise ConfigError(f"mesh {shape} does not fit {num_devices} devices: the axes must multiply to that number")
        return sizes
