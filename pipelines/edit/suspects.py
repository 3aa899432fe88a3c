"""Requests whose editing process has died: what is known of them, also as small objects in the output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.store.location import Location, list_files, put_atomic, read_bytes


class RequestKey(NamedTuple):
    """A request within its unit, whose requests are all of one file."""

    input_row: int
    edit_index: int


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """How often a request's process died while it was edited, how often of these while nothing else ran, and the last cause."""

    all: int = 0
    alone: int = 0
    cause: str = ""


Suspects = dict[RequestKey, Deaths]


def suspects_place(output: Location, unit: str) -> Location:
    """Name the object that holds a unit's suspects."""
    return output / "state" / "suspects" / f"{unit}.json"


def write_suspects(output: Location, unit: str, suspects: Mapping[RequestKey, Deaths], run: str) -> None:
    """Store the suspects of a unit. `run` says of which work the deaths are: settings and generation."""
    requests = [{**key._asdict(), "died": deaths.all, "died_alone": deaths.alone} for key, deaths in suspects.items()]
    text = json.dumps({"run": run, "requests": requests}, indent=2)
    put_atomic(suspects_place(output, unit), text.encode())


def read_suspects(output: Location, units: Iterable[str], run: str) -> dict[str, Suspects]:
    """Read the stored suspects of some units. Their deaths count only where they are of the same `run`."""
    wanted = set(units)
    found = {}
    for name, _ in list_files(output / "state" / "suspects", ".json"):
        unit = name.removesuffix(".json")
        if unit in wanted:
            found[unit] = _parse(read_bytes(suspects_place(output, unit)), run)
    return found


def _parse(text: bytes, run: str) -> Suspects:
    content = json.loads(text)
    same = content["run"] == run
    return {
        RequestKey(entry["input_row"], entry["edit_index"]): Deaths(all=entry["died"], alone=entry["died_alone"])
        if same
        else Deaths()
        for entry in content["requests"]
    }
