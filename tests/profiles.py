"""ICC profiles made of bytes, since none can be relied on to be installed: Display P3, linear grey, and a press of odd inks."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageCms

D50 = (0.9642, 1.0, 0.8249)
P3_PRIMARIES = {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.1571, 0.06657, 0.78407)}
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
CYAN_INK = (20, 90, 210)  # sRGB of full cyan on the odd press


def display_p3() -> bytes:
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _fixed(*SRGB_CURVE)
    tags = {name: b"XYZ \0\0\0\0" + _fixed(*xyz) for name, xyz in P3_PRIMARIES.items()}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)})


def linear_grey() -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0)})


def odd_press() -> bytes:
    """CMYK whose full inks look as no default conversion has them."""
    corners = []
    for cyan, magenta, yellow, black in itertools.product((0, 1), repeat=4):  # the last input runs fastest
        ink = np.array([255, 255, 255])
        for amount, colour in ((cyan, CYAN_INK), (magenta, (210, 40, 120)), (yellow, (250, 210, 30)), (black, (40, 35, 30))):
            ink = ink * np.array(colour) // 255 if amount else ink
        corners.append(ink)
    lab = ImageCms.profileToProfile(
        Image.fromarray(np.array([corners], np.uint8)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    values = np.asarray(lab).copy()
    values[..., 1:] ^= 0x80  # signed bytes in Pillow, offset by 128 in a profile
    ramp = bytes(range(256))
    identity = _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + values.tobytes() + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _profile(kind: bytes, space: bytes, connection: bytes, own: Mapping[bytes, bytes]) -> bytes:
    name = b"made for tests\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*D50),
        **own,
    }
    start = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s6H4s", start + len(body), b"test", 0x02400000, kind, space, connection, *(2020, 1, 1, 0, 0, 0), b"acsp"
    )
    head += bytes(28) + _fixed(*D50)
    return head + bytes(128 - len(head)) + table + body
