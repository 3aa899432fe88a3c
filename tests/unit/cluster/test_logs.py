from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs._cli.progress import progress_line
from pipelines.cluster import logs
from pipelines.cluster.logs import JsonFormatter, TextFormatter, about, fields, set_run
from tests.contexts import make_row

SECRET = "https://ann:hush@host/a.png?X-Amz-Signature=hush&size=3"


@pytest.fixture(autouse=True)
def no_run() -> Iterator[None]:
    logs._run.clear()  # a job that ran in this process has named itself
    yield
    logs._run.clear()


def line_of(message: str, *arguments: object, **options: Any) -> dict[str, Any]:
    """Format one record and parse the line."""
    logger = logging.getLogger("pipelines.somewhere")
    extra, error = options.get("extra", {}), options.get("exc_info")
    record = logger.makeRecord(logger.name, logging.WARNING, __file__, 1, message, arguments, error, extra=extra)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_line_names_run_unit_and_records() -> None:
    row = make_row("r7", edit_index=1, input_row=17)
    before = line_of("nothing yet")
    assert before.keys() == {"time", "level", "logger", "message", "host", "pid"}
    assert before["time"].endswith("Z") and before["level"] == "WARNING" and before["logger"] == "pipelines.somewhere"
    set_run("plan-digest", "attempt-1")
    with about("00000-000000016", "a.parquet"):
        found = line_of("batch of %d", 2, extra=fields("batch_edited", [row.log_name], seconds=0.5, rows=3))
    assert found["message"] == "batch of 2" and found["event"] == "batch_edited"
    assert (found["run"], found["attempt"], found["unit"], found["file"]) == (
        "plan-digest",
        "attempt-1",
        "00000-000000016",
        "a.parquet",
    )
    assert found["records"] == [{"id": "r7", "row": 17, "edit": 1}]
    assert (found["seconds"], found["rows"]) == (0.5, 3)
    assert "unit" not in line_of("later")


def test_a_job_logs_in_json_where_it_is_asked_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [f"input={tmp_path / 'none'}", f"output={tmp_path / 'out'}", "log_format=json"]
    done = subprocess.run([sys.executable, "-m", "jobs.edit", *words], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    *lines, refusal = done.stderr.splitlines()
    assert refusal.startswith("jobs.edit: input: got ")
    assert [json.loads(line)["logger"] for line in lines] == ["jobs.edit"]
    assert json.loads(lines[0])["message"].startswith("model miniature, ")
    caplog.set_level("INFO")
    progress = progress_line("json")
    progress(3, 4, {"ok": 3})
    assert [message.split(",")[0] for message in caplog.messages] == ["3/4 rows (75%)"]


def test_no_line_carries_credentials() -> None:
    row = make_row(SECRET)
    try:
        raise OSError(f"no answer from {SECRET}")
    except OSError:
        found = line_of(
            'got "%s"\n', SECRET, extra=fields("x", [row.log_name], nested={"a": [SECRET]}), exc_info=sys.exc_info()
        )
    text = json.dumps(found)
    assert "hush" not in text and text.count("https://***@host/a.png?X-Amz-Signature=***&size=3") == 4
    assert "Traceback" in found["exception"] and found["message"].endswith("\n")


FORGED = "cat\n2030-01-01 00:00:00,000 INFO jobs.edit: all is well\r\x1b[2J\x9b1A\u202e"


def test_no_name_forges_a_line_of_the_log_or_steers_a_terminal() -> None:
    logger = logging.getLogger("pipelines.somewhere")
    try:
        raise OSError(FORGED)
    except OSError:
        error = sys.exc_info()
    record = logger.makeRecord(logger.name, logging.WARNING, __file__, 1, "record %s: %s", (FORGED, SECRET), error)
    text = TextFormatter("%(levelname)s %(message)s").format(record)
    first, *others = text.split("\n")
    assert first.startswith(
        r"WARNING record cat\n2030-01-01 00:00:00,000 INFO jobs.edit: all is well\r\x1b[2J\x9b1A\u202e: https://***@"
    )
    assert others[0] == "Traceback (most recent call last):" and all(line.startswith("  ") for line in others[1:])
    assert not any(sign in text for sign in "\r\x1b\x9b\u202e") and "hush" not in text
    found = line_of("record %s", FORGED, exc_info=error)
    assert found["message"] == f"record {FORGED}" and FORGED in found["exception"]
    line = JsonFormatter().format(record)
    assert not any(sign in line for sign in "\n\r\x1b\x9b\u202e")


def test_a_worker_that_nobody_has_set_up_shows_warnings_in_the_same_way() -> None:
    program = (
        "import logging; from pipelines.cluster.logs import start_worker; start_worker('run', 'attempt', 'text');"
        f"logging.getLogger('pipelines.edit').warning('record %s', {FORGED!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stderr == "record cat\\n2030-01-01 00:00:00,000 INFO jobs.edit: all is well\\r\\x1b[2J\\x9b1A\\u202e\n"
