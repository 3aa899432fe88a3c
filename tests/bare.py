"""A Python that sees the libraries of a bare GPU machine only: torch, transformers, diffusers and what they need."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

ABSENT = ("ray", "pyarrow", "omegaconf", "s3fs", "pandas", "peft", "accelerate")


def bare_environment(folder: Path, repository: Path) -> dict[str, str]:
    """Return the environment in which `python -S` finds the project and all libraries but those of `ABSENT`."""
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name.split("-")[0].lower() not in ABSENT:
            (folder / path.name).symlink_to(path)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{repository}"}
