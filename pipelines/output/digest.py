"""The digest of a run's configuration: what a row's pictures depend on besides the record and the weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from pipelines.options import EditingPlace, GoingOn, Networks, option_names
from pipelines.output.config import EditJobConfig

# Raised with every change that the changelog marks "changes pixels: yes".
RESULTS_VERSION = 2

# Where work is placed (but for the device, which rounds its own way), what is reported and when a run gives up changes no row; what
# the input is, the plan compares itself.
OUTSIDE_DIGEST = (option_names(EditingPlace, GoingOn) - {"device"}) | {
    *("input", "output", "limit", "sheet", "compile", "offload", "max_rejected_fraction")
}
SEGMENTER_PLACE = ("actors", "gpu_share")
METRIC_NETWORKS = option_names(Networks)


def config_digest(job: EditJobConfig) -> str:
    """Digest every option except those of `OUTSIDE_DIGEST`: 32 hexadecimal digits."""
    text = json.dumps({"results_version": RESULTS_VERSION, **digested_options(job)}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digested_options(job: EditJobConfig) -> dict[str, Any]:
    """Return the options that the digest covers, as plain values. Networks that measure or look for nothing, and how to
    paste where nothing is pasted, change no row."""
    without = OUTSIDE_DIGEST if job.riding else OUTSIDE_DIGEST | METRIC_NETWORKS
    without |= set() if job.frame == "original" else {"paste"}
    without |= set() if job.grounding == "segmenter" else {"segmenter"}
    options = {name: value for name, value in dataclasses.asdict(job).items() if name not in without}
    for name in SEGMENTER_PLACE if "segmenter" in options else ():
        del options["segmenter"][name]
    return options
