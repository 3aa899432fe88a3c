"""What of a model's files is not used, and what its networks lack: counted and named, never passed over."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vimaedit.errors import WrongWeights
from vimaedit.types import LeftOut

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn

SHOWN_NAMES = 3


def some(names: Sequence[str]) -> str:
    """Show the first few of many names."""
    more = f", and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(sorted(names)[:SHOWN_NAMES]) + more


def left_out(what: str, names: Iterable[str], total: int, reason: str) -> tuple[LeftOut, ...]:
    """Return the account of names that are not used, none where all are."""
    found = sorted(names)
    return (
        (LeftOut(what=what, count=len(found), total=total, examples=tuple(found[:SHOWN_NAMES]), reason=reason),)
        if found
        else ()
    )


def check_whole(option: str, name: str, missing: Iterable[str], total: int) -> None:
    """Refuse weights of which some are missing: the library would draw random ones.

    Raises: WrongWeights with the counts and three names.
    """
    if found := sorted(missing):
        raise WrongWeights(
            f"{option}: got {name}, which does not load: {len(found)} of {total} tensors are missing ({some(found)}); allowed: weights "
            "that are whole"
        )


def check_finite(option: str, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that hold NaN or infinity, in the precision in which they are used.

    Raises: WrongWeights with the counts and three names.
    """
    import torch

    floats = {key: value.detach() for key, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not floats:
        return
    # One transfer for all: the least and the largest are NaN where any value is.
    ends = torch.stack([torch.stack(torch.aminmax(value)).float() for value in floats.values()])
    fine = torch.isfinite(ends).all(dim=1).tolist()
    if bad := [key for key, good in zip(floats, fine, strict=True) if not good]:
        kinds = sorted({str(value.dtype).removeprefix("torch.") for value in floats.values()})
        raise WrongWeights(
            f"{option}: got {name}, where {len(bad)} of {len(floats)} tensors hold NaN or infinity in {', '.join(kinds)} ({some(bad)}); "
            "allowed: finite weights"
        )


def all_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters and buffers by name."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def unreached(given: Mapping[str, Tensor], loaded: Iterable[Tensor], kind: dtype) -> list[str]:
    """Name the tensors of a file that are none of those loaded, by their numbers in precision `kind`: whatever names a library gives
    them, and in whatever shape, what has reached a network has its numbers there."""
    there = Counter(_fingerprint(tensor, kind) for tensor in loaded)
    missing = []
    for name, tensor in given.items():
        print_ = _fingerprint(tensor, kind)
        if there[print_]:
            there[print_] -= 1
        else:
            missing.append(name)
    return missing


def _fingerprint(tensor: Tensor, kind: dtype) -> bytes:
    import torch

    flat = tensor.detach().cpu().to(kind).contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=16).digest()
