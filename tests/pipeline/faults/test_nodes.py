"""Worker nodes that are lost: killed without grace, and taken away with notice, as spot machines are."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import FaultTable
from tests.faults.nodes import Nodes, cluster
from tests.faults.runs import compare, num_parts, rows_begun, run, started, wait_for
from tests.pipeline.conftest import MakePicture, write_records
from tests.pipeline.output.test_resume import records

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]

ROWS = 24
NOTICE_S = 20.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster(2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, make_picture: MakePicture) -> list[str]:
    """The options of all runs; the undisturbed one, on a single node, is in `clean`."""
    folder = tmp_path_factory.mktemp("nodes")
    write_records(folder / "in" / "a.parquet", records(range(ROWS), make_picture))
    common = [f"input={folder / 'in'}", "model=random", "steps=20", "threads=1", "batch_size=2", "log_format=json"]
    ended = run(*common, f"output={folder / 'clean'}", "actors=1", timeout_s=900)
    assert ended.code == 0, ended.errors
    return [*common, "actors=2"]


# Where two small actors are that no run does without, a few of each.
WHERE = """
import sys
import ray
from ray.util.state import list_actors
from pipelines.edit.deaths import start_ledger
from pipelines.cluster.counter import start_counter
ray.init(address=sys.argv[1], log_to_driver=False)
ledgers = [start_ledger({}) for _ in range(4)]
counters = [start_counter({"unit": 1}, 0.5) for _ in range(4)]
ray.get([ledger.why_not_started.remote() for ledger in ledgers] + [counter.state.remote() for counter in counters])
here = ray.get_runtime_context().get_node_id()
print(len(ray.nodes()), *sorted(actor.class_name for actor in list_actors(address=sys.argv[1]) if actor.node_id == here))
"""


def test_ledger_and_counter_live_where_the_driver_does(nodes: Nodes) -> None:
    """A head without CPUs for work keeps them all the same: on a worker they would be lost with it."""
    done = subprocess.run(
        [sys.executable, "-c", WHERE, nodes.address], env=nodes.env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", *["Ledger"] * 4, *["ProgressCounter"] * 4]


def clean_of(words: list[str]) -> str:
    return words[0].removeprefix("input=").removesuffix("in") + "clean"


def test_a_node_killed_without_grace_and_not_replaced_costs_no_row(
    nodes: Nodes, words: list[str], tmp_path: Path, fault_table: FaultTable
) -> None:
    output, log = str(tmp_path / "out"), tmp_path / "log"
    began, before = time.monotonic(), rows_begun(nodes.logs)
    with started([*words, f"output={output}", f"ray_address={nodes.address}"], log, RAY_TMPDIR=nodes.folder) as driver:
        wait_for(lambda: num_parts(output) >= 2, driver, log)
        lost = next(node for node in nodes.workers if node.actors())
        nodes.kill(lost)
        assert num_parts(output) < ROWS / 2 and driver.poll() is None
        assert driver.wait(timeout=900) == 0, log.read_text()
    outcome = compare(output, clean_of(words), redone=rows_begun(nodes.logs) - before - ROWS)
    fault_table.add(outcome.line("node killed without grace, none in its place", time.monotonic() - began))
    assert outcome.is_whole, outcome
    # At most what two actors and what waits at them had in hand; no row is blamed for the node.
    assert outcome.redone is not None and outcome.redone <= 8
    # What is left does not hold two actors and a task beside them.
    assert "2 CPUs are left of 3 at least; placing the editing actors anew" in log.read_text()
    nodes.add()


def test_a_drained_node_costs_no_row(nodes: Nodes, words: list[str], tmp_path: Path, fault_table: FaultTable) -> None:
    output, log = str(tmp_path / "out"), tmp_path / "log"
    began, before = time.monotonic(), rows_begun(nodes.logs)
    with started([*words, f"output={output}", f"ray_address={nodes.address}"], log, RAY_TMPDIR=nodes.folder) as driver:
        wait_for(lambda: num_parts(output) >= 2, driver, log)
        lost = next(node for node in nodes.workers if node.actors())
        nodes.drain(lost, NOTICE_S)
        time.sleep(NOTICE_S)
        nodes.kill(lost)
        assert driver.wait(timeout=900) == 0, log.read_text()
    outcome = compare(output, clean_of(words), redone=rows_begun(nodes.logs) - before - ROWS)
    fault_table.add(outcome.line("node drained, then killed", time.monotonic() - began))
    assert outcome.is_whole, outcome
    assert outcome.redone is not None and outcome.redone <= 8
