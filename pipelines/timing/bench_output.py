"""What a benchmark writes: its numbers as JSON, with what they were measured under, and its tables as Markdown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.store.location import Location, put_atomic
from pipelines.tables import Table


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Digest the settings of a benchmark: 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_numbers(output: Location, name: str, numbers: Mapping[str, Any], tables: Sequence[Table]) -> None:
    """Write `<name>.json` and `<name>.md`; the digest of `numbers["settings"]` goes with them."""
    content = {**numbers, "settings_digest": settings_digest(numbers["settings"])}
    put_atomic(output / f"{name}.json", json.dumps(content, indent=2).encode())
    put_atomic(output / f"{name}.md", "\n\n".join(table.markdown() for table in tables).encode())
