"""What every test shares: the environment of test clusters and the place of the reference data."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.logs import PACKAGES
from tests.faults.runs import table_text

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything imports ray: no token file in the home folder, no usage report, no worker killed for another program's
# memory. The one footer actor and the quiet bars keep small runs fast and their output readable.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_memory_monitor_refresh_ms="0",
    RAY_DATA_PARQUET_FOOTER_NUM_ACTORS="1",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
)
# A test never joins a cluster that happens to run, and never asks the hub.
os.environ.pop("RAY_ADDRESS", None)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
# Before anything imports torch: one thread a process, for there are more processes than cores, and idle ones that sleep
# instead of spinning, which makes a model call twenty times slower where several processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Whole runs wait more than they compute. They come first, so that tests that only compute fill the cores beside and after
# them; at the end one worker would be alone with them.
FIRST = ("pipeline", "fuzz", "component", "parity")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def oracle() -> Path:
    """Return the folder of the recorded reference runs; skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "oracle"
    if not folder.is_dir():
        pytest.skip("no reference data at ../shared/oracle")
    return folder


@pytest.fixture(autouse=True)
def fresh_loggers(caplog: pytest.LogCaptureFixture) -> None:
    """Start every test with loggers as they are at first: code of a worker or a job that ran here has set them up for a whole
    process, and has turned down handlers of streams, that of `caplog` among them."""
    caplog.handler.setLevel(logging.NOTSET)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        logger.handlers.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders of long tests first; `make test` hands out files in this order."""
    rank = {REPOSITORY / "tests" / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: min((rank[parent] for parent in item.path.parents if parent in rank), default=len(rank)))


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what is loaded by now: torch and its kind, a million objects that stay."""
    gc.collect()
    gc.freeze()


class FaultTable:
    """What the tests with real faults have measured; shown at the end of the session."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []

    def add(self, line: tuple[str, ...]) -> None:
        self.lines.append(line)


TABLE = pytest.StashKey[FaultTable]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = FaultTable()


@pytest.fixture(scope="session")
def fault_table(pytestconfig: pytest.Config) -> FaultTable:
    """Return the table that the session prints at its end."""
    return pytestconfig.stash[TABLE]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the table of one of several test processes to the one that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["faults"] = session.config.stash[TABLE].lines


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    lines = getattr(node, "workeroutput", {}).get("faults", ())
    node.config.stash[TABLE].lines += [tuple(line) for line in lines]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[TABLE].lines
    if lines:
        terminalreporter.section("faults")
        terminalreporter.write_line(table_text(lines))
