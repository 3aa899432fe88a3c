"""Exit codes, signals and output streams that every job shares."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs._cli.main import run_job
from vimaedit.errors import ConfigError, RequestError

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountConfig:
    count: int = 3  # how many
    label: str = ""


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Put back what a job sets for its whole process."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(*words: str, outcome: int | Exception = 0) -> int:
    def job(config: CountConfig) -> int:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return run_job(CountConfig, job, list(words), name="count", summary="Count things.", required=("label",))


@pytest.mark.parametrize("code", [0, 3, 5])
def test_the_job_decides_the_exit_code(code: int) -> None:
    assert run("label=x", outcome=code) == code


def test_wrong_configuration_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("label=x", "cuont=3") == 2
    assert capsys.readouterr() == ("", "jobs.count: cuont: got an unknown key; did you mean count?\n")
    assert run("label=x", outcome=ConfigError("count: got 3; allowed: 5")) == 2
    assert capsys.readouterr().err == "jobs.count: count: got 3; allowed: 5\n"
    assert run("label=x", outcome=ConfigError("input: got s3://ann:hush@b/c")) == 2
    assert "hush" not in capsys.readouterr().err


def test_any_other_error_is_exit_1_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert run("label=x", outcome=ZeroDivisionError("by seven")) == 1
    assert "ZeroDivisionError: by seven" in caplog.text


def test_the_error_of_one_record_is_no_configuration_error() -> None:
    assert run("label=x", outcome=RequestError("image_empty", field="image", got="0 bytes", allowed="a picture")) == 1


def test_the_log_shows_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers.clear()
    assert run("label=x", outcome=ValueError("https://ann:hush@host/a?X-Amz-Signature=hush&x=1")) == 1
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "https://***@host/a" in errors and "hush" not in errors


def test_a_refusal_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("label=x", outcome=ConfigError("label: got \x1b[2J\rx\njobs.count: all is well; allowed: y")) == 2
    assert capsys.readouterr().err == "jobs.count: label: got \\x1b[2J\\rx\n  jobs.count: all is well; allowed: y\n"


def test_credentials_in_a_stores_url_are_refused_with_the_options_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("label=s3://KEY:HU/SH@bucket/a", outcome=ZeroDivisionError()) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("jobs.count: label: got 's3://***@bucket/a', which holds credentials; allowed: a URL without them")
    assert "HU" not in errors and "SH@" not in errors


def test_help_and_print_config_do_not_run_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", outcome=ZeroDivisionError()) == 0
    assert capsys.readouterr().out == textwrap.dedent("""\
        usage: python -m jobs.count key=value ... [--config FILE.yaml] [--print-config] [--help]

        Count things.

        Required:
          label                  text

        Options (text is taken literally; other types by YAML's rules; KEY= unsets an optional text):
          count                  integer = 3                            how many
        """)
    assert run("label=a: b", "--print-config", outcome=ZeroDivisionError()) == 0
    assert capsys.readouterr().out == "label: 'a: b'\ncount: 3\n"


JOB = """
import dataclasses, pathlib, sys, time
from jobs._cli.main import run_job
from jobs._cli.signals import exit_on_signals

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    state: str = ""  # file written at a signal
    failure: str = ""

def job(config):
    def save(name):
        pathlib.Path(config.state).write_text(name)
        if config.failure == "raises":
            raise OSError("no space left")
        if config.failure == "hangs":
            time.sleep(60)
    exit_on_signals(save)
    print("ready", flush=True)
    time.sleep(60)
    return 0

sys.exit(run_job(Config, job, None, name="wait", summary="", required=("state",)))
"""


@pytest.mark.parametrize(
    ("number", "failure"), [*((number, "") for number in SIGNALS), (signal.SIGTERM, "raises"), (signal.SIGINT, "hangs")]
)
def test_a_signal_saves_state_and_leaves_with_4(repository: Path, tmp_path: Path, number: signal.Signals, failure: str) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    state = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, str(script), f"state={state}", f"failure={failure}"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 4
    assert state.read_text() == number.name
    assert errors.endswith(f"\ninterrupted by {number.name}\n")
    assert ("no space left" in errors) is (failure == "raises")


STARTING = """
import dataclasses, os, signal, sys
from jobs._cli.main import run_job

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    state: str = ""

def job(config):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does while it starts
    os.kill(os.getpid(), signal.SIGTERM)

sys.exit(run_job(Config, job, None, name="start", summary="", required=()))
"""
IMPORTING = "import sys; from jobs.{job} import main; sys.exit(main([]))"


def test_a_signal_while_ray_starts_leaves_with_4(repository: Path) -> None:
    done = run_python(STARTING, repository)
    assert (done.returncode, done.stderr) == (4, "\ninterrupted by SIGTERM\n")


@pytest.mark.parametrize(("number", "job"), [(signal.SIGTERM, "edit"), (signal.SIGINT, "edit_image")])
def test_a_signal_during_imports_leaves_with_4(repository: Path, tmp_path: Path, number: signal.Signals, job: str) -> None:
    """The first heavy package to be imported sends the signal."""
    (tmp_path / "omegaconf.py").write_text(f"import os; os.kill(os.getpid(), {int(number)})")
    done = run_python(IMPORTING.format(job=job), tmp_path, repository)
    assert (done.returncode, done.stderr) == (4, f"\ninterrupted by {number.name}\n")


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=path[0], capture_output=True, text=True, timeout=60
    )
