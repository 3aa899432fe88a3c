"""A submitted job on a cluster of several nodes, from object store to object store, that loses everything once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import environment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]


def test_every_row_comes_out_once_whatever_is_killed(repository: Path) -> None:
    words = ["--rows", "200", "--faults", "actor,node,driver,stop,drain"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.submitted", *words],
        cwd=repository,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "an editing actor killed",
        "a worker node killed",
        "the driver killed (FAILED)",
        "drained with 20 s of notice",
    ):
        assert said in done.stdout
    assert "`ray job stop` (STOPPED; lock released: True)" in done.stdout
