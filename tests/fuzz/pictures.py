"""Pictures that are broken, hostile or merely odd, as coded bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.fuzz.world import World, coded

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
LARGE_PX = 30_000  # a side that makes a picture larger than any limit
BOMB_BYTES = 8_000_000


def in_format(world: World, kind: str | None = None) -> bytes:
    return coded(world.blobs(world.chance.randint(17, 70), world.chance.randint(17, 70)), kind or world.chance.choice(FORMATS))


def truncated(world: World) -> bytes:
    data = in_format(world)
    return data[: world.chance.randint(1, max(2, len(data) * 2 // 3))]


def flipped(world: World) -> bytes:
    """Change a few bytes anywhere, the headers more often than their share."""
    data = bytearray(in_format(world))
    for _ in range(world.chance.randint(1, 8)):
        place = world.chance.randrange(min(len(data), 120) if world.chance.random() < 0.6 else len(data))
        data[place] = world.chance.choice((0, 255, 127, world.chance.randrange(256)))
    return bytes(data)


def spliced(world: World) -> bytes:
    """The head of one file and the tail of another."""
    head, tail = in_format(world), in_format(world)
    return head[: world.chance.randint(4, len(head))] + tail[world.chance.randint(0, len(tail) - 1) :]


def other_format(world: World) -> bytes:
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n",
        lambda: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
        lambda: coded(world.blobs(32, 32), "ICO"),
        lambda: coded(world.blobs(32, 32), "TGA"),
        lambda: b"8BPS\0\1" + world.data(40, 400),
        lambda: b"PK\x03\x04" + world.data(40, 400),
        lambda: b"<html><body>404</body></html>",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        lambda: b"\x1f\x8b\x08" + world.data(40, 400),
        lambda: b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://127.0.0.1/\"|ls \"-la)'\npop graphic-context",
    )
    return world.chance.choice(makers)()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes, body: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n", header, *chunks]
    return b"".join([*parts, _chunk(b"IDAT", body or zlib.compress(bytes(100))), _chunk(b"IEND", b"")])


def huge_by_header(world: World) -> bytes:
    """A few bytes that say they are thousands of millions of pixels."""
    side = world.chance.randint(LARGE_PX, 65_000)
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: png_of(side, side),
        lambda: png_of(2**31 - 1, 2**31 - 1),
        lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99),
        lambda: f"P6 {side} {side} 255\n".encode() + bytes(99),
        lambda: f"P3\n{side} {side} 255\n 1 2 3".encode(),
        lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + _gif_frame(65_535, 65_535),
        lambda: _tiff(side, side),
        lambda: _jpeg_of(65_500, 65_500),
    )
    return world.chance.choice(makers)()


def _gif_frame(width: int, height: int) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"


def _tiff(width: int, height: int) -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200)]
    entries += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 100)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(400, b"\0")


def _jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(coded(Image.new("L", (32, 32), 99), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bomb_beside_pixels(world: World) -> bytes:
    """A small picture whose text, profile or pixel data unpack to millions of bytes."""
    packed = zlib.compress(bytes(BOMB_BYTES), 9)
    good = zlib.compress(bytes((1 + 3 * 32) * 32))
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: png_of(32, 32, _chunk(b"zTXt", b"Comment\0\0" + packed), body=good),
        lambda: png_of(32, 32, _chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed), body=good),
        lambda: png_of(32, 32, _chunk(b"iCCP", b"icc\0\0" + packed), body=good),
        lambda: png_of(32, 32, body=packed),
        lambda: png_of(32, 32, *[_chunk(b"tEXt", b"k%d\0" % number + bytes(50)) for number in range(5000)], body=good),
        lambda: png_of(32, 32, _chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(BOMB_BYTES // 8)), body=good),
    )
    return world.chance.choice(makers)()


def frame_beyond_screen(world: World) -> bytes:
    """A GIF whose frame is larger than its screen says, or lies beside it."""
    side = world.chance.randint(17, 64)
    screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    offset = world.chance.choice((0, side, 60_000))
    frame = b"," + struct.pack("<HHHHB", offset, offset, world.chance.choice((side, 5000)), side, 0)
    return screen + frame + b"\x02\x02\x44\x01\x00;"


def exif_garbage(world: World) -> bytes:
    """A sound picture with broken metadata: random bytes, odd types of the orientation, directories that point at themselves."""
    kind, count = world.chance.randint(0, 14), world.chance.choice((0, 1, 2, 7, 2**31))
    value = world.chance.choice((0, 3, 6, 8, 9, 65_535, 2**32 - 1))
    entry = struct.pack("<HHII", 0x0112, kind, count, value)
    itself = struct.pack("<HHII", 0x8769, 4, 1, 8)
    blocks = (
        world.data(1, 300),
        b"Exif\0\0" + world.data(1, 300),
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4),
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entry + itself + struct.pack("<I", 8),
        b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 60_000) + world.data(12, 900),
        b"Exif\0\0II+\0\x08\0\0\0" + world.data(8, 90),
    )
    return coded(world.blobs(41, 37), world.chance.choice(("JPEG", "PNG", "WEBP")), exif=world.chance.choice(blocks))


def profile_garbage(world: World) -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for _ in range(world.chance.randint(0, 40)):
        profile[world.chance.randrange(len(profile))] = world.chance.randrange(256)
    block = world.chance.choice((bytes(profile), world.data(1, 5000), bytes(profile) * 30))
    return coded(world.blobs(41, 37), world.chance.choice(("JPEG", "PNG", "WEBP", "TIFF")), icc_profile=block)


def deep_samples(world: World) -> bytes:
    shape = (world.chance.randint(17, 40), world.chance.randint(17, 40))
    numbers = np.random.default_rng(world.chance.getrandbits(32))
    floats = numbers.normal(0, 1e6, shape).astype(np.float32)
    floats[0, 0] = world.chance.choice((np.nan, np.inf, 0.0))
    deep = numbers.integers(70_000, 2**31 - 1, shape, dtype=np.int32)
    return coded(Image.fromarray(world.chance.choice((floats, deep, -deep))), "TIFF")


def unusual_mode(world: World) -> bytes:
    """Modes that few pictures have, some of them with transparency that does not fit."""
    mode, kind = world.chance.choice(
        [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("RGBA", "WEBP")]
        + [
            ("CMYK", "JPEG"),
            ("CMYK", "TIFF"),
            ("YCbCr", "TIFF"),
            ("LAB", "TIFF"),
            ("1", "TIFF"),
            ("LA", "TIFF"),
            ("L", "JPEG2000"),
        ]
    )
    picture = world.blobs(37, 29)
    if mode == "LAB":
        picture = Image.frombytes("LAB", picture.size, picture.tobytes())
    else:
        picture = picture.convert(mode)
    options = {}
    if kind in ("PNG", "GIF") and mode in ("P", "L", "1"):
        options = world.chance.choice([{}, {"transparency": 0}, {"transparency": 255}])
    data = coded(picture, kind, **options)
    if kind == "PNG" and world.chance.random() < 0.5:
        place = data.index(b"IDAT") - 4
        data = data[:place] + _chunk(b"tRNS", world.data(0, 9)) + data[place:]
    return data


def tiff_tags(world: World) -> bytes:
    """A TIFF whose directory has some entries changed."""
    kind = world.chance.choice(("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"))
    data = bytearray(coded(world.blobs(48, 40), "TIFF", compression=kind))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for _ in range(world.chance.randint(1, 3)):
        place = start + 2 + 12 * world.chance.randrange(count)
        part, width = world.chance.choice(((0, 2), (2, 2), (4, 4), (8, 4)))
        value = world.chance.choice((0, 1, 2, 255, 2**16 - 1, 2 ** (8 * width) - 1, world.chance.getrandbits(8 * width)))
        data[place + part : place + part + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(data)


def several_frames(world: World) -> bytes:
    frames = [world.blobs(33, 27) for _ in range(world.chance.randint(2, 5))]
    kind = world.chance.choice(("GIF", "WEBP", "TIFF", "PNG", "AVIF"))
    return coded(frames[0], kind, save_all=True, append_images=frames[1:])


def extreme_aspect(world: World) -> bytes:
    long = world.chance.randint(4000, 16_000)
    size = world.chance.choice(((long, 16), (16, long)))
    return coded(Image.new("RGB", size, (9, 99, 33)))


def too_small(world: World) -> bytes:
    size = world.chance.choice(((1, 1), (15, 300), (300, 15), (1, 4000), (15, 15)))
    return coded(world.blobs(*size), world.chance.choice(("PNG", "BMP", "GIF", "TIFF")))


def with_texts(world: World) -> bytes:
    """A sound picture whose text chunks hold control characters, other encodings and addresses."""
    texts = PngImagePlugin.PngInfo()
    for number in range(world.chance.randint(1, 6)):
        texts.add(b"tEXt", f"k{number}".encode() + b"\0" + world.data(0, 60))
    texts.add(b"tEXt", b"\0" + world.data(0, 9))
    texts.add(b"iTXt", world.data(0, 30))
    buffer = io.BytesIO()
    world.blobs(31, 27).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()
