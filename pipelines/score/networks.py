"""The metrics' networks on a worker, where pictures are scored and where metrics ride along in an editing run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.cluster.place import Placement
from pipelines.cluster.session import get
from pipelines.cluster.weights import local_copy
from pipelines.cluster.workers import on_worker
from pipelines.options import Networks
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import BACKBONES
from vimaedit.metrics.samples import EditSample
from vimaedit.models.names import absolute_name

if TYPE_CHECKING:
    from vimaedit.metrics.suite import MetricSuite, Values


@dataclass(frozen=True, kw_only=True)
class MetricNetworks:
    """Which groups of metrics are measured, and where the weights of their networks are."""

    groups: tuple[str, ...]
    weights: Mapping[str, str | None]

    @classmethod
    def of(cls, config: Networks, groups: Sequence[str]) -> MetricNetworks:
        """Name the networks of a configuration, paths made absolute, for a worker's current folder may be another."""
        names = {each.name: getattr(config, each.name) for each in dataclasses.fields(Networks)}
        weights = {option: None if name is None else absolute_name(name) for option, name in names.items()}
        return cls(groups=tuple(groups), weights=weights)


class Measurer:
    """Measures edits in batches of up to `batch_size`. `absent`: metrics without a network, of which all workers have the same."""

    def __init__(
        self, networks: MetricNetworks, *, batch_size: int, threads: int, use_gpu: bool, absent: Sequence[str]
    ) -> None:
        self.batch_size = batch_size
        self.suite = _load_suite(networks, threads, use_gpu)
        if self.suite.absent.keys() != set(absent):
            raise RuntimeError(
                f"networks: got {self.suite.absent} absent here, {list(absent)} on another worker; all need the same"
            )

    def __call__(self, samples: Sequence[EditSample]) -> list[Values]:
        values: list[Values] = []
        for start in range(0, len(samples), self.batch_size):
            values += self.suite(samples[start : start + self.batch_size])
        return values


def find_absent(networks: MetricNetworks, placement: Placement) -> dict[str, str]:
    """Load the networks once on a worker of the measuring kind: which metrics cannot be had, and why."""
    if not BACKBONES.keys() & set(networks.groups):
        return {}
    absent: dict[str, str] = get(on_worker(_find_absent, placement).remote(networks, placement.threads, placement.use_gpu))
    return absent


def absent_warnings(absent: Mapping[str, str]) -> list[str]:
    """Say once for each reason which metrics are absent."""
    reasons: dict[str, list[str]] = {}
    for metric, reason in absent.items():
        reasons.setdefault(reason, []).append(metric)
    return [f"{', '.join(metrics)}: absent, since {reason}" for reason, metrics in reasons.items()]


def _load_suite(networks: MetricNetworks, threads: int, use_gpu: bool) -> MetricSuite:
    import torch

    from vimaedit.metrics.suite import MetricSuite

    torch.set_num_threads(threads)
    names: dict[str, str | None] = {}
    for option, name in networks.weights.items():
        try:
            names[option] = local_copy(option, name) if name is not None and "://" in name else name
        except ConfigError:  # there is nothing: the suite says so, with the option's name
            names[option] = name
    return MetricSuite(networks.groups, **names, device="cuda" if use_gpu else "cpu")


def _find_absent(networks: MetricNetworks, threads: int, use_gpu: bool) -> dict[str, str]:
    return _load_suite(networks, threads, use_gpu).absent
