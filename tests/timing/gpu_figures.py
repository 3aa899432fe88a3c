"""What an accelerator makes of the networks and of whole edits, a figure at a time: `{"section": ..., ...}`.

Weights may be drawn ones: speed does not depend on values. It runs on a CPU too, with a small model, to see that it runs at all.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.timing.machine import count_operations
from tests.timing.sides import drawn_requests, load_editor, prepare_side
from vimaedit.config import EditConfig, check_choice, check_range, check_types
from vimaedit.engine.editor import BatchEditor
from vimaedit.models.backbone import Backbone
from vimaedit.models.networks import choose_device

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
CONTROLS = ("stock", "maps")
COMPILERS = ("inductor", "eager")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True, kw_only=True)
class GpuBenchConfig:
    """Ceilings, UNet rows, whole edits, autoencoder and memory on one device."""

    output: str = ""  # Markdown file to whose end the tables are added
    model: str = "sd15"  # sd15, small-sd15: drawn weights, at full size or narrow; or a built-in name or bundle folder
    device: str = "cuda"  # cuda, cuda:NUMBER, or cpu to see that it runs
    dtype: str = "float16"  # of the networks
    steps: int = 50  # denoising steps of whole edits
    rows: list[int] = field(default_factory=lambda: [3, 6, 12, 24, 48, 96])  # UNet rows of a forward pass
    backends: list[str] = field(default_factory=lambda: ["flash", "cudnn", "efficient"])  # of attention
    compiled_rows: list[int] = field(default_factory=lambda: [48])  # rows for which the UNet is compiled; each takes minutes
    batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])  # edits at once
    compiled_batches: list[int] = field(default_factory=lambda: [16])  # edits at once, compiled; each takes minutes
    compiler: str = "inductor"  # of those; eager: torch only traces them, to see on a CPU that it can
    vae_batches: list[int] = field(default_factory=lambda: [1, 4, 8, 16])  # pictures at once
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))  # other ways to edit
    matrix: int = 8192  # side of the matrices of the ceiling
    copy_mb: int = 4096  # size of the copy of the ceiling
    repeats: int = 10  # of every short piece of work; medians count

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("dtype", self.dtype, ("float16", "bfloat16", "float32"))
        for name, low, high in (("steps", 1, 999), ("matrix", 8, 65536), ("copy_mb", 1, 65536), ("repeats", 1, 1000)):
            check_range(name, getattr(self, name), low, high)
        for name in ("rows", "compiled_rows", "batches", "compiled_batches", "vae_batches"):
            for each in getattr(self, name):
                check_range(name, each, 1, 4096)
        check_choice("compiler", self.compiler, COMPILERS)
        for name, allowed in (("backends", tuple(BACKENDS)), ("controls", CONTROLS)):
            for each in getattr(self, name):
                check_choice(name, each, allowed)


class Clock:
    """Times work on a device: everything queued before and after is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_s(self, work: Callable[[], object], repeats: int) -> float:
        """Return the median seconds of `repeats` runs after one that does not count."""
        work()
        seconds = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def forget_peak(self) -> None:
        """Let the peak of the device's memory begin anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float | None:
        """Return the most memory held since, GB; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None


def find_figures(settings: GpuBenchConfig, model: Path) -> Iterator[dict[str, Any]]:
    """Measure everything, a figure at a time. `model`: the bundle's folder."""
    device = choose_device(settings.device)
    clock, dtype = Clock(device), getattr(torch, settings.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield {"section": "environment", "device": name, "torch": torch.__version__, "dtype": settings.dtype}
    ceilings = measure_ceilings(settings, clock, dtype)
    yield {"section": "ceilings", **ceilings}
    editor = load_editor(str(model), EditConfig(steps=settings.steps, blend="given"), settings.device, settings.dtype)
    unet, vae = editor.backbone.networks.denoiser, editor.backbone.networks.vae
    flops = count_row_flops(unet, device, dtype)
    yield {"section": "row", "gflop": flops / 1e9, "parameters_m": sum(p.numel() for p in unet.parameters()) / 1e6}
    yield from measure_rows(settings, clock, unet, flops, ceilings["matmul_tflops"])
    yield from measure_edits(settings, model, clock, editor, flops, ceilings["matmul_tflops"])
    yield from measure_vae(settings, clock, vae, editor.canvas.size)
    yield from measure_compiled_edits(
        settings, model, clock, editor, flops, ceilings["matmul_tflops"]
    )  # minutes, so last of all


def measure_ceilings(settings: GpuBenchConfig, clock: Clock, dtype: torch.dtype) -> dict[str, float]:
    """Return the rate of a large matrix product, TFLOP/s, and of a copy (read and write), TB/s."""
    side = settings.matrix
    a, b = (torch.rand(side, side, device=clock.device).to(dtype) for _ in range(2))
    product = clock.median_s(lambda: a @ b, settings.repeats)
    source = torch.rand(settings.copy_mb * 2**20 // 4, device=clock.device)
    target = torch.empty_like(source)
    copied = clock.median_s(lambda: target.copy_(source), settings.repeats)
    return {"matmul_tflops": 2 * side**3 / product / 1e12, "copy_tb_s": 2 * 4 * source.numel() / copied / 1e12}


def row_inputs(unet: UNet2DConditionModel, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return random inputs of a UNet for `rows` rows."""
    config = unet.config
    side = config.sample_size
    inputs: dict[str, Any] = {
        "sample": torch.randn(rows, config.in_channels, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(rows, 77, config.cross_attention_dim, device=device, dtype=dtype),
        "return_dict": False,
    }
    if config.encoder_hid_dim_type == "ip_image_proj":
        width = unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features
        inputs["added_cond_kwargs"] = {"image_embeds": [torch.randn(rows, 1, width, device=device, dtype=dtype)]}
    return inputs


@torch.inference_mode()
def count_row_flops(unet: UNet2DConditionModel, device: torch.device, dtype: torch.dtype) -> int:
    """Count the floating-point operations of one row."""
    return count_operations(partial(unet, **row_inputs(unet, 1, device, dtype)))


@torch.inference_mode()
def measure_rows(
    settings: GpuBenchConfig, clock: Clock, unet: UNet2DConditionModel, flops: int, ceiling: float
) -> Iterator[dict[str, Any]]:
    """Time forward passes by rows, memory layout and attention backend, eager and compiled."""
    dtype = getattr(torch, settings.dtype)
    for layout, memory_format in LAYOUTS.items():
        unet.to(memory_format=memory_format)
        compiled = torch.compile(unet, dynamic=False) if settings.compiled_rows else unet
        for backend in settings.backends:
            for mode, network, counts in (("eager", unet, settings.rows), ("compiled", compiled, settings.compiled_rows)):
                if mode == "compiled" and backend != settings.backends[0]:
                    continue  # one compilation for each layout: they take minutes
                for rows in counts:
                    inputs = row_inputs(unet, rows, clock.device, dtype)
                    inputs["sample"] = inputs["sample"].to(memory_format=memory_format)
                    clock.forget_peak()
                    with _attention(backend) as supported:
                        seconds = clock.median_s(partial(network, **inputs), settings.repeats) if supported else None
                    figures = {} if seconds is None else _rates(seconds / rows, flops, ceiling)
                    yield {
                        "section": "rows",
                        **{"mode": mode, "layout": layout, "backend": backend, "rows": rows, "peak_gb": clock.peak_gb()},
                        **figures,
                    }
    unet.to(memory_format=torch.contiguous_format)


def _rates(row_s: float, flops: int, ceiling: float) -> dict[str, float]:
    return {"ms_per_row": 1000 * row_s, "tflops": flops / row_s / 1e12, "mfu": flops / row_s / 1e12 / ceiling}


@contextmanager
def _attention(backend: str) -> Iterator[bool]:
    """Let attention be computed by one backend. Yields False where this machine has it for no shape at all."""
    if backend != "math" and not torch.cuda.is_available():
        yield False
        return
    with sdpa_kernel(BACKENDS[backend]):
        yield True


def measure_edits(
    settings: GpuBenchConfig, model: Path, clock: Clock, editor: BatchEditor, flops: int, ceiling: float
) -> Iterator[dict[str, Any]]:
    """Time whole edits, from encoded to denoised latents: the engine by batch, then the other ways one by one."""
    for side, count in [*(("fused", each) for each in settings.batches), *((each, 1) for each in settings.controls)]:
        seconds = edit_seconds(side, count, editor, clock, model)
        rows = (4 if side != "fused" else 3) * settings.steps
        yield {
            "section": "edits",
            "side": side,
            "mode": "eager",
            "at_once": count,
            **_speed(seconds, rows * flops, ceiling, clock),
        }


def measure_compiled_edits(
    settings: GpuBenchConfig, model: Path, clock: Clock, editor: BatchEditor, flops: int, ceiling: float
) -> Iterator[dict[str, Any]]:
    """Time the engine compiled, by batch. Inductor's generator for CPUs fails on passes that record, so there are no figures there."""
    can_compile = clock.device.type == "cuda" or settings.compiler != "inductor"
    compiled = BatchEditor(Backbone(editor.backbone.networks, editor.config), editor.config, editor.facts)
    if can_compile and settings.compiled_batches:
        compiled.backbone.compile(backend=settings.compiler)
    for count in settings.compiled_batches:
        figures: dict[str, Any] = {}
        if can_compile:
            seconds = edit_seconds("fused", count, compiled, clock, model)
            figures = _speed(seconds, 3 * settings.steps * flops, ceiling, clock)
        yield {"section": "edits", "side": "fused", "mode": "compiled", "at_once": count, **figures}


def edit_seconds(side: str, count: int, editor: BatchEditor, clock: Clock, folder: Path) -> float:
    """Return the seconds an edit, with `count` at once, after two steps to warm up, of which the second records attention."""
    short = BatchEditor(editor.backbone, dataclasses.replace(editor.config, steps=2, grounding_start=1.0), editor.facts)
    seconds = 0.0
    for own in (short, editor):
        edits = [own.prepare(each) for each in drawn_requests(count, own.canvas.size)]
        run = prepare_side(side, own, edits, own.encode(edits), folder)
        clock.forget_peak()
        clock.wait()
        started = time.perf_counter()
        run()
        clock.wait()
        seconds = (time.perf_counter() - started) / count
    return seconds


def _speed(seconds: float, flops: int, ceiling: float, clock: Clock) -> dict[str, float | None]:
    return {
        **{"s_per_edit": seconds, "edits_per_s": 1 / seconds},
        **{"mfu": flops / seconds / 1e12 / ceiling, "peak_gb": clock.peak_gb()},
    }


@torch.inference_mode()
def measure_vae(settings: GpuBenchConfig, clock: Clock, vae: AutoencoderKL, canvas: int) -> Iterator[dict[str, Any]]:
    """Time the autoencoder's two ways by batch."""
    dtype = getattr(torch, settings.dtype)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    for batch in settings.vae_batches:
        pictures = torch.rand(batch, 3, canvas, canvas, device=clock.device, dtype=dtype)
        latents = torch.randn(batch, vae.config.latent_channels, canvas // factor, canvas // factor, device=clock.device)
        latents = latents.to(dtype)
        clock.forget_peak()
        for way, work in (("encode", partial(vae.encode, pictures)), ("decode", partial(vae.decode, latents))):
            seconds = clock.median_s(work, settings.repeats) / batch
            yield {"section": "vae", "way": way, "at_once": batch, "ms_per_picture": 1000 * seconds, "peak_gb": clock.peak_gb()}
