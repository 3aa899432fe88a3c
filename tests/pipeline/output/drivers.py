"""Drivers as processes of their own, killed where a test wants it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A driver with this on its path kills itself where it calls `KILL_AT` (module:function:number of the call).
HOOK = """
import importlib.abc, importlib.machinery, os, signal, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        module_name, function, number = os.environ.get("KILL_AT", "::").split(":")
        if name != module_name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            called, calls = getattr(module, function), []
            def killing(*arguments, **options):
                calls.append(1)
                if len(calls) == int(number):
                    os.kill(os.getpid(), signal.SIGKILL)
                return called(*arguments, **options)
            setattr(module, function, killing)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Hook())
"""
WAIT_S = 240.0


class Drivers:
    """Starts `jobs.edit` on one input and output, as processes of their own."""

    def __init__(self, repository: Path, folder: Path, *words: str) -> None:
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        self.repository, self.output = repository, folder / "out"
        self.words = [f"input={folder / 'in'}", f"output={self.output}", "model=random", "actors=1", "threads=1", *words]
        self.path = f"{folder / 'hook'}:{repository}"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, kill_at: str | None = None) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": self.path} | ({"KILL_AT": kill_at} if kill_at else {})
        command = [sys.executable, "-m", "jobs.edit", *self.words, *words]
        pipe = subprocess.PIPE
        self.started.append(
            subprocess.Popen(command, cwd=self.repository, env=environment, stdout=pipe, stderr=pipe, text=True)
        )
        return self.started[-1]

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            process.wait()

    def run(self, *words: str, kill_at: str | None = None) -> tuple[int, str, str]:
        process = self.start(*words, kill_at=kill_at)
        text, errors = process.communicate(timeout=280)
        return process.returncode, text, errors

    def is_killed(self, kill_at: str, *words: str) -> bool:
        code, _, errors = self.run(*words, kill_at=kill_at)
        assert code == -signal.SIGKILL, errors
        return not (self.output / "_SUCCESS").exists()

    def wait_for(self, condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def num_parts(self) -> int:
        return len(list((self.output / "data").glob("*.parquet")))


@pytest.fixture
def make_drivers(repository: Path, tmp_path: Path) -> Iterator[Callable[..., Drivers]]:
    made: list[Drivers] = []

    def make(*words: str) -> Drivers:
        made.append(Drivers(repository, tmp_path, *words))
        return made[-1]

    yield make
    for drivers in made:
        drivers.end()
