"""All classes of bad records."""

from __future__ import annotations

from tests.fuzz import coded, references, values
from tests.fuzz.registry import CLASSES

__all__ = ["CLASSES", "coded", "references", "values"]
