"""Seeds of what is made for a record: they follow from the run's seed and the record alone."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Derive 63 bits from the run's seed, a record's id and whatever tells apart what is made for it.

    blake2b over the parts joined by colons, big-endian, shifted right by one: with seed and id alone it is the seed that an
    editor gives a record without one.
    """
    digest = hashlib.blake2b(":".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
