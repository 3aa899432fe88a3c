"""Where generated records live: seeded chance, folders inside and outside the allowed root, planted secrets and canaries."""

from __future__ import annotations

import io
import os
import random
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.store.fetch import MAX_IMAGE_BYTES

SEED_VARIABLE = "VIMAEDIT_FUZZ_SEED"
CANARY_COLOUR = (251, 7, 199)
CANARY_TEXT = b"canary-that-nothing-may-read"
PROMPTS = ("a red cat on the lawn", "a red dog on the lawn")


def fuzz_seed() -> int:
    """Take the seed from the environment, or a new one; printed, so that a failure can be had again."""
    seed = int(os.environ.get(SEED_VARIABLE) or secrets.randbelow(2**32))
    print(f"{SEED_VARIABLE}={seed}")
    return seed


@dataclass(kw_only=True, eq=False)
class World:
    """What a generator of records draws from. `root` is the input's root, `outside` a folder beside it with the canaries."""

    seed: int
    root: Path
    outside: Path
    chance: random.Random = field(init=False)
    secret: str = field(init=False)
    port: int = 0  # of a server on 127.0.0.1 that answers garbage
    forbidden_port: int = 0  # of one that nothing may ask

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.secret = f"SECRET{self.chance.randbytes(8).hex()}"

    def text(self, most: int = 40) -> str:
        """Return letters, spaces, signs and other scripts, at least one character; nothing that Arrow could not store."""
        letters = "abcdefghij  .,;:-'\"/\\<>&%$#@!*()[]{}=?äßñ漢字🙂\u0301\u200d\u202e"
        return "".join(self.chance.choice(letters) for _ in range(self.chance.randint(1, most)))

    def data(self, least: int, most: int) -> bytes:
        return self.chance.randbytes(self.chance.randint(least, most))

    def blobs(self, width: int, height: int, mode: str = "RGB") -> Image.Image:
        """Return a picture of smooth blobs of colour."""
        noise = np.random.default_rng(self.chance.getrandbits(32)).integers(0, 230, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)

    def good_picture(self) -> bytes:
        return coded(self.blobs(self.chance.randint(17, 90), self.chance.randint(17, 90)), self.chance.choice(("PNG", "JPEG")))


def coded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Code a picture."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def build_world(folder: Path, seed: int) -> World:
    """Lay out the folders: pictures, links out of the root, things that are no files; the canaries outside."""
    world = World(seed=seed, root=folder / "in", outside=folder / "outside")
    pictures = world.root / "pictures"
    pictures.mkdir(parents=True)
    world.outside.mkdir()
    canary = coded(Image.new("RGB", (64, 64), CANARY_COLOUR))
    for name in ("canary.png", "canary.parquet.png"):
        (world.outside / name).write_bytes(canary)
    (world.outside / "canary.txt").write_bytes(CANARY_TEXT)
    (pictures / "good.png").write_bytes(world.good_picture())
    (pictures / "link.png").symlink_to(world.outside / "canary.png")
    (pictures / "chain.png").symlink_to("link.png")
    (pictures / "folder-link").symlink_to(world.outside)
    (pictures / "passwd.png").symlink_to("/etc/passwd")
    (pictures / "environment.png").symlink_to("/proc/self/environ")
    (pictures / "loop.png").symlink_to("loop.png")
    (pictures / "broken.png").symlink_to("nothing-there.png")
    (pictures / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(pictures / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(pictures)  # such an address holds few characters
        listener.bind("socket.png")
        os.chdir(here)
    (pictures / "folder.png").mkdir()
    (pictures / "empty.png").write_bytes(b"")
    with (pictures / "huge.png").open("wb") as stream:
        stream.truncate(MAX_IMAGE_BYTES + 1)
    return world
