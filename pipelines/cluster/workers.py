"""Workers: a task in the place of an actor, waiting for the first, and what only a worker can tell before a plan is made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray

from pipelines.cluster.place import Placement, place
from pipelines.cluster.session import connect, get, look_at_cluster
from pipelines.cluster.weights import local_segmenter, with_absolute_names, with_local_weights
from pipelines.options import Place
from pipelines.store.patience import GPU_WAIT_S
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.models.files import ModelFacts
from vimaedit.models.names import BUILT_IN
from vimaedit.types import LeftOut

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a worker says of the model and of itself. `device_gib`: memory of its GPU, None on a CPU; `weights_gib`: what the model's
    weights take; `left_out`: what of the model's
    files is not used."""

    facts: ModelFacts
    model_digest: str
    device: str
    dtype: str
    device_gib: float | None
    weights_gib: float
    versions: dict[str, str]
    left_out: tuple[LeftOut, ...] = ()


def on_worker(function: Any, placement: Placement, **options: Any) -> Any:
    """Make a task of a function that runs in the place of one actor, with its CPUs and its GPU."""
    return ray.remote(function).options(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, **options)


def probe(edit: EditConfig, model: ModelConfig, placement: Placement) -> Probe:
    """Read the model's facts and digest its weights on a worker of the editing kind. A model that is not built in is loaded there
    once, as the actors will, so that wrong weights end the run before it is planned.

    Raises: ConfigError where the model cannot be had, is not whole or does not fit the options.
    """
    named = with_absolute_names(model)
    asked = on_worker(_probe, placement).remote(with_absolute_names(edit), named, placement.threads, placement.use_gpu)
    found: Probe = get(asked)
    found.facts.fit(edit.canvas)  # refuses what no row could have
    return found


def join(where: Place, on_started: Callable[[], None] | None, *, compiled: bool = False) -> Placement:
    """Connect, tell that Ray has started, place the work, and wait for a first worker.

    Raises: ConfigError where that cannot be had.
    """
    connect(where)
    if on_started is not None:
        on_started()
    placement = place(where, look_at_cluster(where), compiled=compiled)
    await_worker(placement)
    return placement


def await_worker(placement: Placement, *, timeout_s: float = GPU_WAIT_S) -> None:
    """Wait until a worker of the editing kind runs, where the cluster has yet to bring one.

    Raises: ConfigError where none has come in time.
    """
    if not placement.waits:
        return
    logger.info("no GPU is there yet: waiting up to %.0f s for the cluster to bring one", timeout_s)
    began = on_worker(_begin, placement).remote()
    try:
        ray.get(began, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(began, force=True)
        raise ConfigError(
            f"device: got cuda, but no GPU has come within {timeout_s:g} s; allowed: a cluster that has one or brings one, or cpu"
        ) from None
    logger.info("a GPU is there")


def _begin() -> None:
    """Do nothing: that it runs says that there is room for it."""


def _probe(edit: EditConfig, model: ModelConfig, threads: int, use_gpu: bool) -> Probe:
    found = _probe_model(edit, model, threads, use_gpu)
    if edit.grounding != "segmenter":
        return found
    import hashlib

    from vimaedit.engine.segmenter import Segmenter, find_segmenter, segmenter_digest

    local = local_segmenter(edit)
    files = find_segmenter(local.segmenter)
    Segmenter(local, files)  # tried once
    both = f"{found.model_digest} {segmenter_digest(files)}".encode()
    return dataclasses.replace(found, model_digest=hashlib.sha256(both).hexdigest()[:32])


def _probe_model(edit: EditConfig, model: ModelConfig, threads: int, use_gpu: bool) -> Probe:
    import platform

    from vimaedit.models.files import model_digest, model_facts, resolve_model, weights_gib

    device, device_gib = _gpu(model) if use_gpu else ("cpu", None)
    local = with_local_weights(model)
    versions = {"python": platform.python_version(), "torch": version("torch"), "ray": ray.__version__}
    versions |= {"machine": platform.machine(), "device": device}
    if edit.parts.hosts_pipeline:
        return _probe_pipeline(edit, local, threads, device_gib, versions)
    files = resolve_model(local, image_guidance=edit.image_guidance)
    dtype = model.dtype if model.dtype != "auto" else files.family.half if use_gpu and not edit.needs_gradients else "float32"
    unmerged: tuple[tuple[str, ...], ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    if not _is_built_in(model):
        import torch

        from vimaedit.models.networks import load_networks

        torch.set_num_threads(threads)
        networks = load_networks(files, dataclasses.replace(local, device="cuda" if use_gpu else "cpu", dtype=dtype))
        unmerged, left_out = networks.unmerged, networks.left_out
    return Probe(
        facts=model_facts(files),
        model_digest=model_digest(files, unmerged),
        device="cuda" if use_gpu else "cpu",
        dtype=dtype,
        device_gib=device_gib,
        weights_gib=weights_gib(files, dtype, model.offload),
        versions=versions,
        left_out=left_out,
    )


def _probe_pipeline(
    edit: EditConfig, model: ModelConfig, threads: int, device_gib: float | None, versions: dict[str, str]
) -> Probe:
    """Say the same of a pipeline that is hosted as it is, and whether it may be asked in batches."""
    import torch

    from vimaedit.engine.hosted import load_hosted_editor
    from vimaedit.engine.hosted_files import find_pipeline, hosted_digest, hosted_gib

    torch.set_num_threads(threads)
    device = "cpu" if device_gib is None else "cuda"
    dtype = model.dtype if model.dtype != "auto" else "float32" if device_gib is None else "bfloat16"
    files = find_pipeline(model)
    editor = load_hosted_editor(edit, dataclasses.replace(model, device=device, dtype=dtype), files)
    return Probe(
        facts=editor.facts,
        model_digest=hosted_digest(files),
        device=device,
        dtype=dtype,
        device_gib=device_gib,
        weights_gib=hosted_gib(files, dtype),
        versions=versions,
    )


def _is_built_in(model: ModelConfig) -> bool:
    """Whether a model is the package's own in all its parts."""
    return model.model in BUILT_IN and not model.lora and model.ip_adapter is None and model.clip is None


def _gpu(model: ModelConfig) -> tuple[str, float]:
    """Return the name and the memory in GiB of this worker's GPU. Only here is torch imported: that takes seconds.

    Raises: ConfigError where torch sees none.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"device: got {model.device}, but torch {torch.__version__} sees no GPU on the worker; allowed: cpu")
    return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 2**30
