"""The digest of a run's configuration: what a row's pictures depend on besides the record and the weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from pipelines.config import EditJobConfig

# Raised with every change that the changelog marks "changes pixels: yes".
RESULTS_VERSION = 1

# Where work is placed, what is reported and when a run gives up changes no row; what the input is, the plan compares itself.
OUTSIDE_DIGEST = frozenset(
    {
        *("input", "output", "resume", "retry_statuses", "limit", "dry_run", "sheet"),
        *("actors", "batch_size", "threads", "compile", "ray_address", "log_format"),
        *("max_failed_fraction", "max_rejected_fraction", "stop_failed_fraction"),
    }
)
METRIC_NETWORKS = frozenset({"scoring_clip", "dino", "lpips", "lpips_heads"})


def config_digest(job: EditJobConfig) -> str:
    """Digest every option except those of `OUTSIDE_DIGEST`: 32 hexadecimal digits."""
    text = json.dumps({"results_version": RESULTS_VERSION, **digested_options(job)}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digested_options(job: EditJobConfig) -> dict[str, Any]:
    """Return the options that the digest covers, as plain values. Networks that measure nothing change no row."""
    without = OUTSIDE_DIGEST if job.riding else OUTSIDE_DIGEST | METRIC_NETWORKS
    return {name: value for name, value in dataclasses.asdict(job).items() if name not in without}
