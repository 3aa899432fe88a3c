"""Requests whose editing process has died: noted in one small actor while a run is at work, and as small objects in its output.

A process that dies says nothing any more. What it was editing then stands in the ledger, and the next process that takes up the unit
is told. Starts of actors stand there too: a model that nobody can load ends the run with the cause.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from pipelines.cluster.small import start_actor
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from pipelines.store.location import Location, damaged, list_files, put_atomic, read_json
from pipelines.store.patience import LOAD_TRIES
from vimaedit.errors import ConfigError

FORGETS = "remove it: the deaths that it tells of are forgotten then"
UNSAID = "its process was killed or crashed"


class RequestKey(NamedTuple):
    """A request within its unit. `file` is empty where the unit is of one file."""

    input_row: int
    edit_index: int
    file: str = ""


def request_key(unit: Unit, row: Row) -> RequestKey:
    """Name a row's request within its unit."""
    return RequestKey(row.input_row, row.edit_index, row.input_file if unit.files > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """How often a request's process died while it was edited, how often of these while nothing else ran, and the last cause."""

    all: int = 0
    alone: int = 0
    cause: str = ""


Suspects = dict[RequestKey, Deaths]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process of an editing actor. An actor keeps its id when Ray starts it again."""

    actor: str
    node: str
    pid: int


@dataclass(kw_only=True)
class _Open:
    worker: Worker
    requests: Sequence[RequestKey]
    cause: str = UNSAID


def node_is_alive(node: str) -> bool:
    """Whether Ray takes a node to be alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return any(each["NodeID"] == node and each["Alive"] for each in nodes)


class Ledger:
    """Knows what is being edited, which requests are suspects, and which actors try to start.

    A death counts only where the node lives on: a lost machine says nothing about a request. `suspects` are those of earlier
    drivers by unit. Where the ledger's own process dies, Ray starts it anew and empty: what goes on meanwhile it has not begun,
    and a death that it does not hear of is one that does not count.
    """

    def __init__(self, suspects: Mapping[str, Suspects], is_alive: Callable[[str], bool] = node_is_alive) -> None:
        self.suspects = {unit: dict(found) for unit, found in suspects.items()}
        self.is_alive = is_alive
        self.editing: dict[str, _Open] = {}
        self.starting: dict[str, Worker] = {}
        self.start_deaths: dict[str, int] = {}
        self.has_started = False
        self.failed_starts = 0
        self.start_error: tuple[str, bool] | None = None  # the text, and whether the configuration is to blame

    def enter(self, unit: str) -> tuple[Suspects, bool]:
        """Take up a unit, perhaps again: the suspects among its requests, and whether a death has been counted just now."""
        left = self.editing.pop(unit, None)
        if left is None or not self.is_alive(left.worker.node):
            return self.suspects.get(unit, {}), False
        suspects = self.suspects.setdefault(unit, {})
        for key in left.requests:
            before = suspects.get(key, Deaths())
            suspects[key] = Deaths(all=before.all + 1, alone=before.alone + (len(left.requests) == 1), cause=left.cause)
        return suspects, True

    def begin(self, unit: str, requests: Sequence[RequestKey], worker: Worker) -> None:
        """Note that a process edits these requests from now on, side by side."""
        self.editing[unit] = _Open(worker=worker, requests=requests)

    def end(self, unit: str) -> None:
        """Note that what was begun has come to its end."""
        self.editing.pop(unit, None)

    def leave(self, unit: str, cause: str) -> None:
        """Note why a process is about to end itself."""
        if unit in self.editing:
            self.editing[unit].cause = cause

    def start(self, worker: Worker) -> tuple[str, bool] | None:
        """Note that a process loads the model; what stands against it, if a run of this cannot come to anything."""
        before = self.starting.get(worker.actor)
        self.starting[worker.actor] = worker
        if before is not None and before.pid != worker.pid and self.is_alive(before.node):
            self.start_deaths[worker.actor] = self.start_deaths.get(worker.actor, 0) + 1
        deaths = self.start_deaths.get(worker.actor, 0)
        if deaths >= LOAD_TRIES:
            text = f"the process of an editing actor died {deaths} times in a row while it loaded the model"
            self.start_error = f"{text}; its node's log and memory may say why", False
            self.failed_starts = LOAD_TRIES
            return self.start_error
        hopeless = self.start_error is not None and not self.has_started and self.failed_starts >= LOAD_TRIES
        return self.start_error if hopeless else None

    def started(self, worker: Worker) -> None:
        """Note that a process has loaded the model."""
        self.has_started, self.failed_starts, self.start_error = True, 0, None
        self.starting.pop(worker.actor, None)
        self.start_deaths.pop(worker.actor, None)

    def failed_start(self, worker: Worker, text: str, is_config: bool) -> None:
        """Note that a process could not load the model, and why. Only wrong configuration is certain to stay."""
        self.starting.pop(worker.actor, None)
        self.failed_starts = self.failed_starts + 1 if is_config else 0
        self.start_error = text, is_config

    def why_not_started(self) -> tuple[str, bool] | None:
        return self.start_error


def start_ledger(suspects: Mapping[str, Suspects]) -> Any:
    """Start the ledger of a run."""
    return start_actor(Ledger, suspects)


def this_worker() -> Worker:
    """Name the editing actor's process that calls this."""
    context = ray.get_runtime_context()
    return Worker(actor=context.get_actor_id() or "", node=context.get_node_id(), pid=os.getpid())


@contextmanager
def starting(ledger: Any) -> Iterator[None]:
    """Note that this process loads the model, and what comes of it.

    Raises: ConfigError or RuntimeError at once where this has failed too often in the run.
    """
    worker = this_worker()
    against = ray.get(ledger.start.remote(worker))
    if against is not None:
        raise _start_error(*against)
    try:
        yield
    except Exception as error:
        is_config = isinstance(error, ConfigError)
        text = str(error) if is_config else f"{type(error).__name__}: {error}"
        ray.get(ledger.failed_start.remote(worker, text, is_config))
        raise
    ray.get(ledger.started.remote(worker))


@contextmanager
def explaining_starts(ledger: Any) -> Iterator[None]:
    """Where the stages within fail since no actor could start, raise the reason instead of what the engine made of it.

    Raises: ConfigError where the configuration is to blame, else RuntimeError.
    """
    try:
        yield
    except Exception as error:
        against = ray.get(ledger.why_not_started.remote())
        if against is None:
            raise
        raise _start_error(*against) from error


def _start_error(text: str, is_config: bool) -> Exception:
    return ConfigError(text) if is_config else RuntimeError(f"no editing actor could start: {text}")


def suspects_place(output: Location, unit: str) -> Location:
    """Name the object that holds a unit's suspects."""
    return output / "state" / "suspects" / f"{unit}.json"


def write_suspects(output: Location, unit: str, suspects: Mapping[RequestKey, Deaths], run: str) -> None:
    """Store the suspects of a unit. `run` says of which work the deaths are: settings and generation."""
    requests = [
        {
            **{name: value for name, value in key._asdict().items() if value != ""},
            "died": deaths.all,
            "died_alone": deaths.alone,
        }
        for key, deaths in suspects.items()
    ]
    text = json.dumps({"run": run, "requests": requests}, indent=2)
    put_atomic(suspects_place(output, unit), text.encode())


def read_suspects(output: Location, units: Iterable[str], run: str) -> dict[str, Suspects]:
    """Read the stored suspects of some units. Their deaths count only where they are of the same `run`."""
    wanted = set(units)
    found = {}
    for name, _ in list_files(output / "state" / "suspects", ".json"):
        unit = name.removesuffix(".json")
        if unit in wanted:
            found[unit] = _read_stored(suspects_place(output, unit), run)
    return found


def _read_stored(place: Location, run: str) -> Suspects:
    content = read_json(place, {"run": str, "requests": list}, FORGETS) or {"run": run, "requests": []}
    same = content["run"] == run
    try:
        return {
            RequestKey(entry["input_row"], entry["edit_index"], entry.get("file", "")): Deaths(
                all=entry["died"], alone=entry["died_alone"]
            )
            if same
            else Deaths()
            for entry in content["requests"]
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise damaged(place, error, "requests and how often they died", FORGETS) from error
