"""Recipe arguments as dataclass fields that carry their own help text, so that each is declared once."""

import dataclasses
from typing import Any


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and a help text; `walt prepare` makes a flag of it."""
    return dataclasses.field(default=default, metadata={"help": help})
