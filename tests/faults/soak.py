"""A long run whose drivers, actors and nodes are killed again and again: does every edit come out once, and does memory stay flat?

    python -m tests.faults.soak --edits 20000 --kills 10 --interval 60 --folder /tmp/soak

Starts a cluster of a head and two worker nodes on this machine, edits tiny pictures with the smallest model in one step, and kills
drivers, editing actors and nodes in random order, so many of each. Prints a report, and exits with 1 where something was lost.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.nodes import Node, Nodes, cluster
from tests.faults.pictures import write_input
from tests.faults.runs import Outcome, compare, identity, num_parts, rows_begun, rows_of, run, started, table_text

FILE_ROWS = 100  # of an input file, and so of a unit at most: what a kill can cost
CLEAN_FILES = 2  # that are edited undisturbed too, to compare pictures with
SAMPLE_S = 10.0
POLL_S = 0.5
MB = 1e6
KINDS = ("driver", "actor", "node")
FLAT_FACTOR, FLAT_MB = 1.15, 40.0  # how much the last third of a run may lie above the first


@dataclass(kw_only=True)
class Memory:
    """Private memory over time, in MB, by kind of process: the largest process of the kind at each moment."""

    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def take(self, driver: subprocess.Popen[bytes], nodes: Nodes) -> None:
        """Measure what runs now."""
        assert nodes.head is not None
        now: dict[str, float] = defaultdict(float)
        for kind, tree in [
            ("driver", [psutil.Process(driver.pid)] if driver.poll() is None else []),
            *(("worker node", node.tree()) for node in list(nodes.workers)),
            ("head", nodes.head.tree()),
        ]:
            for process in tree:
                with suppress(psutil.NoSuchProcess):
                    facts = process.memory_info()
                    name = _name(kind, process.name(), " ".join(process.cmdline()))
                    now[name] = max(now[name], (facts.rss - facts.shared) / MB)
        for name, size in now.items():
            self.samples[name].append(size)

    def lines(self) -> list[tuple[str, str, str, str, str]]:
        """Per kind of process: medians of the first and the last third, the peak, and the verdict."""
        found = []
        for name, sizes in sorted(self.samples.items()):
            third = max(1, len(sizes) // 3)
            first, last = statistics.median(sizes[:third]), statistics.median(sizes[-third:])
            flat = last <= FLAT_FACTOR * first + FLAT_MB
            found.append((name, f"{first:.0f}", f"{last:.0f}", f"{max(sizes):.0f}", "yes" if flat else "NO"))
        return found


def _name(kind: str, name: str, words: str) -> str:
    """Name the kinds of process that are worth a line of their own."""
    if kind == "driver":
        return "driver"
    for part, shown in (("gcs_server", "GCS"), ("dashboard/dashboard", "dashboard"), ("raylet/raylet", "raylet")):
        if part in words or part in name:
            return f"{kind}: {shown}"
    if name.startswith("ray::MapWorker"):
        return f"{kind}: editing actor"
    if name.startswith(("ray::ProgressCounter", "ray::Ledger")):
        return f"{kind}: counter and ledger"
    return f"{kind}: other Ray processes"


class Killer:
    """Chooses what dies next, and when."""

    def __init__(self, kills: int, interval_s: float, seed: int) -> None:
        self.chance = random.Random(seed)
        self.left = Counter({kind: kills for kind in KINDS})
        self.done: Counter[str] = Counter()
        self.times: list[float] = []
        self.interval_s = interval_s
        self.due = time.monotonic() + self._pause()

    def _pause(self) -> float:
        return self.interval_s * self.chance.uniform(0.6, 1.4)

    def strike(self, driver: subprocess.Popen[bytes], nodes: Nodes) -> str | None:
        """Kill something if it is time: what it was."""
        kinds = [kind for kind in KINDS if self.left[kind]]
        if not kinds or time.monotonic() < self.due:
            return None
        kind = self.chance.choice(kinds)
        if not self._kill(kind, driver, nodes):
            return None
        self.left[kind] -= 1
        self.done[kind] += 1
        self.times.append(time.monotonic())
        self.due = time.monotonic() + self._pause()
        return kind

    def _kill(self, kind: str, driver: subprocess.Popen[bytes], nodes: Nodes) -> bool:
        if kind == "driver":
            driver.kill()
            driver.wait()
            return True
        if kind == "node":
            node: Node = self.chance.choice(nodes.workers)
            nodes.kill(node)
            nodes.add()
            return True
        actors = [actor for node in nodes.workers for actor in node.actors()]
        if actors:
            self.chance.choice(actors).kill()
        return bool(actors)

    @property
    def mean_interval_s(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else 0.0


@contextmanager
def sampling(memory: Memory, running: list[subprocess.Popen[bytes]], nodes: Nodes) -> Iterator[None]:
    """Measure memory every few seconds, from a thread."""
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            with suppress(psutil.NoSuchProcess):
                memory.take(running[-1], nodes)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def soak(edits: int, kills: int, interval_s: float, folder: Path, seed: int) -> bool:
    """Run and report; whether nothing was lost, every kill was made and memory is flat."""
    write_input(str(folder / "in"), edits, FILE_ROWS)
    clean = folder / "clean"
    (folder / "few").mkdir()
    for name in sorted(path.name for path in (folder / "in").iterdir())[:CLEAN_FILES]:
        shutil.copy(folder / "in" / name, folder / "few" / name)
    common = ["model=random", "steps=1", "threads=1", "batch_size=4"]
    ended = run(f"input={folder / 'few'}", f"output={clean}", *common, "actors=1", timeout_s=3600)
    if ended.code:
        raise RuntimeError(ended.errors)
    killer, memory, log, output = Killer(kills, interval_s, seed), Memory(), folder / "log", str(folder / "out")
    drivers, code, began = 0, -1, time.monotonic()
    with cluster(2) as nodes:
        words = [f"input={folder / 'in'}", f"output={output}", *common, "actors=2", "log_format=json"]
        words.append(f"ray_address={nodes.address}")
        running: list[subprocess.Popen[bytes]] = []
        killer.due = time.monotonic() + interval_s
        with ExitStack() as stack:
            while code not in (0, 2, 3, 5):
                drivers += 1
                driver = stack.enter_context(started(words, Path(f"{log}-{drivers}"), RAY_TMPDIR=nodes.folder))
                running.append(driver)
                if drivers == 1:
                    stack.enter_context(sampling(memory, running, nodes))
                while driver.poll() is None:
                    time.sleep(POLL_S)
                    struck = killer.strike(driver, nodes)
                    if struck:
                        say(f"{time.monotonic() - began:.0f} s: {struck} killed; {num_parts(output)} units written")
                code = driver.returncode
                say(f"{time.monotonic() - began:.0f} s: driver {drivers} ended with {code}")
        seconds = time.monotonic() - began
        redone = rows_begun(nodes.logs) - edits
    return report(folder, output, str(clean), edits, killer, memory, redone, seconds, drivers, code)


def say(text: str) -> None:
    print(text, flush=True)


def report(
    folder: Path,
    output: str,
    clean: str,
    edits: int,
    killer: Killer,
    memory: Memory,
    redone: int,
    seconds: float,
    drivers: int,
    code: int,
) -> bool:
    """Print what came of it and store it as `soak.json`."""
    rows = rows_of(output, ("input_file", "input_row", "edit_index", "status"))
    keys = {identity(row) for row in rows}
    statuses = Counter(row["status"] for row in rows)
    sample = compare(output, clean, num_files=CLEAN_FILES)
    lines = memory.lines()
    flat = all(line[-1] == "yes" for line in lines)
    text = f"{sum(killer.done.values())} kills: " + ", ".join(f"{killer.done[kind]} {kind}" for kind in KINDS)
    outcome = Outcome(requested=edits, rows=len(rows), duplicates=len(rows) - len(keys), equal=sample.equal, redone=redone)
    line = list(outcome.line(text, seconds))
    line[5] = f"{sample.equal} of {sample.requested} compared"
    say(table_text([line]))
    say(
        f"\n{drivers} drivers, the last ended with {code}; mean interval of kills {killer.mean_interval_s:.0f} s; rows: {dict(statuses)}"
    )
    say("\n| process | MB, first third | MB, last third | peak | flat |\n| --- | --- | --- | --- | --- |")
    for each in lines:
        say("| " + " | ".join(each) + " |")
    whole = len(rows) == len(keys) == edits == statuses["ok"] and sample.equal == sample.requested and code == 0
    missing = {kind: count for kind, count in killer.left.items() if count}
    if missing:
        say(f"\nnot killed, since all edits were done before: {missing}; take more edits")
    facts = {
        "edits": edits,
        "rows": len(rows),
        "duplicates": outcome.duplicates,
        "redone": redone,
        "statuses": dict(statuses),
        "kills": dict(killer.done),
        "mean_interval_s": killer.mean_interval_s,
        "seconds": seconds,
        "drivers": drivers,
        "memory_mb": memory.samples,
    }
    (folder / "soak.json").write_text(json.dumps(facts, indent=2))
    return whole and flat and not missing


def main(words: Sequence[str] | None = None) -> int:
    """Run, report, and say by the exit code whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10, help="of each: driver, actor, node")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between kills, on average")
    parser.add_argument("--folder", type=Path, help="for input, output, logs and report; default: a new one")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order of kills; printed")
    given = parser.parse_args(words)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    say(f"seed {given.seed}, folder {folder}")
    return 0 if soak(given.edits, given.kills, given.interval, folder, given.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
