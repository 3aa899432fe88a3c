"""Metrics and their dashboard: what Ray exports, and that every panel asks for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.telemetry import BATCH_SIZE, EDITS, GPU_MEMORY, ROWS_LEFT, SECONDS_PER_EDIT, Metric

EXPORTED = (EDITS, SECONDS_PER_EDIT, BATCH_SIZE, GPU_MEMORY, ROWS_LEFT)


def series_of(metric: Metric) -> list[str]:
    """Return the names under which Prometheus knows it, less a histogram's sum: Ray adds up the middles of the buckets there."""
    return [f"ray_{metric.name}{end}" for end in (("_bucket", "_count") if metric.kind == "histogram" else ("",))]


SERIES = {name: metric for metric in EXPORTED for name in series_of(metric)}
EXPORT = """
import json, time, urllib.request
import ray

@ray.remote
class Actor:
    def work(self):
        import sys
        from pipelines.cluster.telemetry import observe_batch, observe_rows_left
        observe_batch(["ok", "ok", "rejected"], seconds=3.0, batch_size=2)
        observe_batch(["ok"], seconds=7.0, batch_size=1)
        observe_batch(["rejected"], seconds=0.1, batch_size=0)
        observe_rows_left(13)
        return "torch" in sys.modules

ray.init(address="local", num_cpus=1, include_dashboard=True, log_to_driver=False)
actor = Actor.remote()
loaded = ray.get(actor.work.remote())
(node,) = ray.nodes()
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
deadline = time.monotonic() + 60
text = ""
while "ray_vimaedit_rows_left" not in text and time.monotonic() < deadline:
    time.sleep(0.5)
    try:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
    except OSError:
        pass  # the exporter comes up after the node
print(json.dumps({"loaded": loaded, "lines": [line for line in text.splitlines() if "vimaedit" in line]}))
"""


@pytest.fixture(scope="module")
def dashboard(repository: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((repository / "infra/grafana/vimaedit.json").read_text())
    return document


def metric_names(expression: str) -> set[str]:
    """Return the metrics of a PromQL expression: its words less functions, labels, groupings, ranges and numbers."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|without)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"[A-Za-z_:][\w:]*(?!\w*\s*\()", bare))


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (status) (rate(a_total{status="x", b=~"y"}[$__rate_interval]))', {"a_total"}),
        ("histogram_quantile(0.5, sum by (le) (rate(a_bucket[5m]))) / max(b)", {"a_bucket", "b"}),
        ("a", {"a"}),
    ],
)
def test_metric_names_are_found(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names


def test_every_panel_asks_for_metrics_that_there_are(dashboard: dict[str, Any]) -> None:
    wanted: set[str] = set()
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            names = metric_names(target["expr"])
            assert names and names <= SERIES.keys(), (panel["title"], names)
            wanted |= names
            for name in names:
                # A counter means something as a rate only, and starts anew with every process.
                if SERIES[name].kind != "gauge":
                    assert f"rate({name}" in target["expr"], panel["title"]
    assert {SERIES[name] for name in wanted} == set(EXPORTED)


def test_panels_use_labels_that_metrics_have(dashboard: dict[str, Any]) -> None:
    of_ray = {"SessionName", "NodeAddress", "le"}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            used = set(re.findall(r"(\w+)=~?\"", target["expr"]))
            for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
                used |= set(re.findall(r"\w+", group))
            tags = {tag for name in metric_names(target["expr"]) for tag in SERIES[name].tags}
            assert used <= of_ray | tags, panel["title"]


def test_the_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "session"}
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


@pytest.mark.slow  # a Ray of its own
def test_ray_exports_the_metrics_under_these_names(repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", EXPORT], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["loaded"]  # recording loads no torch
    values = {}
    for line in found["lines"]:
        if line.startswith("#"):
            continue
        name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
        kept = re.findall(r'\b(status|le)="([^"]*)"', labels)
        assert {"SessionName", "NodeAddress"} <= set(re.findall(r"(\w+)=", labels))
        values[name, *(text for _, text in kept)] = float(value)
    exported = {name for name, *_ in values} - {"ray_vimaedit_seconds_per_edit_sum"}
    assert exported == SERIES.keys() - {"ray_vimaedit_gpu_memory_bytes"}
    assert values["ray_vimaedit_edits_total", "ok"] == 3
    assert values["ray_vimaedit_edits_total", "rejected"] == 2
    assert values["ray_vimaedit_seconds_per_edit_count",] == 2
    assert values["ray_vimaedit_seconds_per_edit_bucket", "2.0"] == 1
    assert values["ray_vimaedit_seconds_per_edit_bucket", "10.0"] == 2
    assert values["ray_vimaedit_batch_size",] == 1
    assert values["ray_vimaedit_rows_left",] == 13
