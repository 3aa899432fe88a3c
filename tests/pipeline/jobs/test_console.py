"""What a newcomer sees: a real job on a terminal says its own words, and a finished one needs neither Ray nor a model to say so."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.scenes import main as write_scenes

SAID = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) (jobs|pipelines)[.\w]*: .+"  # the job's log
    r"|(\[[# ]{28}\] \d+/2 rows \(\d+%\), [\d.]+ rows/s(, [\d:]+ left)? *\r?)+"  # its progress
    r"|2 rows in [\d.]+ s \([\d.]+ rows/s\): 2 ok, 0 rejected, 0 failed, 0 quarantined"
    r"|(data|report): +/.*/edited/(data|run\.json)"
)
STYLE = re.compile(r"\x1b\[[\d;]*m")
LISTENS = re.compile(r"Initializing worker at address: (\S+):\d+ ")
CORE = "constructor arguments in the object store"
AGAIN = """
import sys
from jobs.edit import main
code = main(sys.argv[1:])
print(code, sorted({"ray", "torch", "diffusers", "transformers"} & sys.modules.keys()))
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's sessions; sockets lie in it, so its path has to be short."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run_on_terminal(command: list[str], **options: object) -> tuple[int, str]:
    """Run a command with a terminal for all its streams; its exit code, and what it showed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, **options)  # type: ignore[call-overload]
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the last to hold the other end has gone
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    return process.wait(timeout=60), shown.decode()


@pytest.mark.timeout(300)
def test_a_job_says_its_own_words(repository: Path, tmp_path: Path, ray_folder: Path) -> None:
    assert write_scenes([f"output={tmp_path / 'records'}", "count=2"]) == 0
    words = [f"input={tmp_path / 'records'}", f"output={tmp_path / 'edited'}", "steps=2", "actors=1", "threads=1"]
    # As a newcomer has it: no token is there, and nothing is said of tokens.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(ray_folder), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "jobs.edit", *words]
    code, shown = run_on_terminal(command, cwd=repository, env=environment)
    assert code == 0, shown
    lines = [line for line in STYLE.sub("", shown).replace("\r\n", "\n").split("\n") if line.strip()]
    foreign = [line for line in lines if not all(SAID.fullmatch(each) for each in filter(str.strip, line.split("\r")))]
    assert foreign == []
    assert sum(line.count("100%") for line in lines) == 1
    said = [line.split(": ", 1)[1] for line in lines if " INFO " in line]
    assert [text.split(",")[0] for text in said[:3]] == ["model miniature", "starting Ray", "editing 2 rows"]
    # It is not gone: Ray's own log has what its core said.
    logs = list(ray_folder.rglob("python-core-driver-*.log"))
    assert any(CORE in log.read_text() for log in logs)
    # Its processes listen for each other where nobody else can reach them.
    addresses = [LISTENS.findall(log.read_text()) for log in ray_folder.rglob("python-core-*.log")]
    assert len(addresses) > 1 and {address for found in addresses for address in found} == {"127.0.0.1"}

    done = subprocess.run([sys.executable, "-c", AGAIN, *words], cwd=repository, capture_output=True, text=True, timeout=60)
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("finished before, nothing to do: 2 rows: 2 ok, 0 rejected, 0 failed, 0 quarantined", "0 []")
