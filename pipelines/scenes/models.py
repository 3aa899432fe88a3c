"""What a benchmark of drawn scenes asks of the model itself, on workers of the editing kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.cluster.place import Placement
from pipelines.cluster.session import get
from pipelines.cluster.weights import local_copy, with_local_weights
from pipelines.output.config import EditJobConfig
from vimaedit.scenes.captions import draw_wording, write_caption
from vimaedit.scenes.draws import Draws
from vimaedit.scenes.reading.find import read_unknown
from vimaedit.scenes.reading.judge_compare import Comparison, compare_objects
from vimaedit.scenes.sampling import sample_scene
from vimaedit.scenes.scenes import Scene
from vimaedit.types import UInt8Array

WORDING_STREAM = 4  # of `Draws`; scenes, textures, training and edits have others
OBJECT_COUNTS = (1, 2)
CLIP_ROWS = 64  # pictures of one task


@dataclass(frozen=True, kw_only=True)
class CaptionedScene:
    """A scene with one of its captions."""

    seed: int
    scene: Scene
    caption: str


def captioned_scene(seed: int) -> CaptionedScene:
    """Return the scene of a seed and a caption of it."""
    scene = sample_scene(seed)
    caption = write_caption(scene, draw_wording(Draws(seed, WORDING_STREAM), len(scene.objects)))
    return CaptionedScene(seed=seed, scene=scene, caption=caption)


def round_trips(job: EditJobConfig, placement: Placement, images: Sequence[UInt8Array]) -> tuple[list[UInt8Array], int]:
    """Take pictures through the model's autoencoder and back; also how many pixels a latent has on a side."""
    result: tuple[list[UInt8Array], int] = get(_on_worker(_round_trips, placement).remote(job, placement.threads, images))
    return result


def draw_scenes(
    job: EditJobConfig, placement: Placement, scenes: Sequence[CaptionedScene], *, steps: int, guidance: float
) -> list[UInt8Array]:
    """Draw a picture of every caption with the stock text-to-image pipeline, shared out among the workers."""
    share = -(-len(scenes) // max(1, placement.likely_actors))
    tasks = [
        _on_worker(_draw_scenes, placement).remote(job, placement.threads, scenes[start : start + share], steps, guidance)
        for start in range(0, len(scenes), share)
    ]
    return [picture for pictures in get(tasks) for picture in pictures]


def read_drawn(scenes: Sequence[CaptionedScene], pictures: Sequence[UInt8Array]) -> list[Comparison]:
    """Say of every scene what of it its picture shows."""
    return list(get([ray.remote(_read_drawn).remote(*each) for each in zip(scenes, pictures, strict=True)]))


def similarities(clip: str, images: Sequence[UInt8Array], texts: Sequence[str]) -> list[float]:
    """Return 100 times the cosine between each picture and its text, by a CLIP that is named as `scoring_clip` is.

    Raises: ConfigError where it does not load.
    """
    tasks = [
        ray.remote(_similarities).remote(clip, images[start : start + CLIP_ROWS], texts[start : start + CLIP_ROWS])
        for start in range(0, len(images), CLIP_ROWS)
    ]
    return [value for values in get(tasks) for value in values]


def num_found(clip: str, images: Sequence[UInt8Array], texts: Sequence[str]) -> int:
    """Count the pictures whose own caption is the nearest of all, by a CLIP that is named as `scoring_clip` is.

    Raises: ConfigError where it does not load.
    """
    count: int = get(ray.remote(_num_found).remote(clip, images, texts))
    return count


def steering_clip(job: EditJobConfig, placement: Placement) -> str | None:
    """Return the folder of the CLIP that steers, on the worker; None without image guidance."""
    folder: str | None = get(_on_worker(_steering_clip, placement).remote(job))
    return folder


def _on_worker(function: Any, placement: Placement) -> Any:
    return ray.remote(function).options(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus)


def _round_trips(job: EditJobConfig, threads: int, images: Sequence[UInt8Array]) -> tuple[list[UInt8Array], int]:
    import torch

    from vimaedit.models.backbone import Backbone
    from vimaedit.models.files import resolve_model
    from vimaedit.models.networks import load_networks
    from vimaedit.scenes.reading.models import round_trip

    torch.set_num_threads(threads)
    local = with_local_weights(job)
    backbone = Backbone(load_networks(resolve_model(local, image_guidance=local.image_guidance), local), local)
    return round_trip(backbone, images), backbone.vae_factor


def _draw_scenes(
    job: EditJobConfig, threads: int, scenes: Sequence[CaptionedScene], steps: int, guidance: float
) -> list[UInt8Array]:
    import torch

    from vimaedit.models.files import resolve_model
    from vimaedit.scenes.reading.models import draw_pictures, load_text_to_image

    torch.set_num_threads(threads)
    files = resolve_model(with_local_weights(job), image_guidance=False)
    pipe = load_text_to_image(files, job.device, job.dtype)
    captions, seeds = [each.caption for each in scenes], [each.seed for each in scenes]
    return draw_pictures(pipe, captions, seeds, steps=steps, guidance=guidance)


def _read_drawn(drawn: CaptionedScene, picture: UInt8Array) -> Comparison:
    return compare_objects(drawn.scene, read_unknown(picture))


def _similarities(clip: str, images: Sequence[UInt8Array], texts: Sequence[str]) -> list[float]:
    import torch

    from vimaedit.metrics.clip import ClipScore

    with torch.inference_mode():
        cosines = ClipScore(_local_weights(clip)).cosines(images, texts)
    return [100 * value for value in cosines.tolist()]


def _num_found(clip: str, images: Sequence[UInt8Array], texts: Sequence[str]) -> int:
    import torch

    from vimaedit.metrics.clip import ClipScore
    from vimaedit.scenes.reading.models import num_found

    with torch.inference_mode():
        return num_found(ClipScore(_local_weights(clip)), images, texts)


def _steering_clip(job: EditJobConfig) -> str | None:
    from vimaedit.models.files import resolve_model

    folder = resolve_model(with_local_weights(job), image_guidance=job.image_guidance).clip
    return None if folder is None else str(folder)


def _local_weights(clip: str) -> str:
    return local_copy("scoring_clip", clip) if "://" in clip else clip
