"""Masks from outside: what is about to change is looked for by a zero-shot detector and outlined by a network like SAM, both of transformers.

A picture and a phrase are looked at alone, so that a mask depends on nothing else: not on a batch, nor on what was asked before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError, RequestError
from vimaedit.methods.options import Segmenter as SegmenterOptions
from vimaedit.models.files import network_weights
from vimaedit.models.losses import check_whole
from vimaedit.models.names import download, first_line, local_path, split_hub_id
from vimaedit.models.networks import quiet_libraries
from vimaedit.types import BoolArray, EditRequest, UInt8Array
from vimaedit.words.changes import find_changes

PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]  # of a repository, all that is loaded
KEPT_MASKS = 1024  # of an actor, as bits: 32 KB each at 512 px
BOXES = 64  # outlined at once
TRIED_SIDE = 64  # px of the picture that new networks are tried on


@dataclass(frozen=True, kw_only=True)
class SegmenterFiles:
    """The folders of a segmenter's networks; `model` None: the boxes are the mask."""

    detector: Path
    model: Path | None


def find_segmenter(options: SegmenterOptions) -> SegmenterFiles:
    """Find the folders, downloaded where they are named by hub id.

    Raises: ConfigError for what is none.
    """
    model = None if options.model is None else _folder("segmenter.model", options.model)
    return SegmenterFiles(detector=_folder("segmenter.detector", options.detector), model=model)


def segmenter_digest(files: SegmenterFiles) -> str:
    """Digest the contents of the weights, configs and words of both networks: 32 hexadecimal digits.

    Raises: ConfigError where a folder has no weights.
    """
    digest = hashlib.sha256()
    for option, folder in (("detector", files.detector), ("model", files.model)):
        if folder is None:
            continue
        texts = [path for pattern in PATTERNS[:-1] for path in folder.glob(pattern)]
        for path in (*sorted(texts), *network_weights(f"segmenter.{option}", folder, None)[1]):
            digest.update(f"{option}/{path.name}".encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def sought_phrases(request: EditRequest, config: EditConfig) -> tuple[str, ...]:
    """Say what to look for in the source: the words that change, as given or else as the prompts differ; where nothing of the source
    changes, the instruction.

    Raises: RequestError for prompts of too many words.
    """
    words = [phrase.source for phrase in request.blend]
    if not words and config.blend != "given":
        changes = find_changes(request.source_prompt, request.target_prompt).content
        words = [None if each.source is None else request.source_prompt[slice(*each.source)] for each in changes]
    named = [word.strip() for word in words if word is not None and word.strip()]
    return tuple(dict.fromkeys(named)) or ((request.instruction,) if request.instruction else ())


class Segmenter:
    """Finds the masks of edits. Networks run in float32."""

    def __init__(self, config: EditConfig, files: SegmenterFiles | None = None) -> None:
        """Load the networks and try them once.

        Raises: ConfigError for what cannot be loaded, or is of another kind.
        """
        import transformers

        self.config, self.options = config, config.segmenter
        files = files or find_segmenter(self.options)
        self.detector, self.words = self._load("detector", transformers.AutoModelForZeroShotObjectDetection, files.detector)
        self.model: Any = None
        self.outlines: Any = None
        if files.model is not None:
            self.model, self.outlines = self._load("model", transformers.AutoModelForMaskGeneration, files.model)
        self.kept: dict[tuple[bytes, str], Any] = {}  # bits of masks, None where nothing was found
        gray = np.full((TRIED_SIDE, TRIED_SIDE, 3), 128, dtype=np.uint8)
        self._try("detector", lambda: self._boxes(gray, "a thing"))
        self._try("model", lambda: self._outline(gray, [[0.0, 0.0, TRIED_SIDE / 2, TRIED_SIDE / 2]]))

    def find(self, image: UInt8Array, request: EditRequest) -> tuple[BoolArray | None, tuple[str, ...]]:
        """Find what a request is about to change in its picture on the canvas, (height, width, 3): a mask (height, width), None where
        nothing is found, and warnings of what was not.

        Raises: RequestError where nothing is found and such records are rejected.
        """
        phrases = sought_phrases(request, self.config)
        found = [self._mask(image, phrase) for phrase in phrases]
        masks = [mask for mask in found if mask is not None]
        missed = [repr(phrase) for phrase, mask in zip(phrases, found, strict=True) if mask is None]
        warnings = tuple(
            f"segmenter_phrase_cut: of {phrase!r} the detector reads the beginning"
            for phrase in phrases
            if self._is_cut(phrase)
        )
        said = f"{', '.join(missed)}, not seen in the picture" if phrases else "no words of what is in the picture"
        if masks:
            return np.logical_or.reduce(masks), (*warnings, *((f"segmenter_missed: {said}",) if missed else ()))
        if self.options.missing == "reject":
            raise RequestError(
                "segmenter_missed",
                field="segmenter",
                got=said,
                allowed="words of what the picture shows, a lower segmenter.threshold, or segmenter.missing=ignore",
            )
        return None, (*warnings, f"segmenter_missed: {said}; the mask is the method's own")

    def _mask(self, image: UInt8Array, phrase: str) -> BoolArray | None:
        """Return the mask of all that a phrase names, found once for a picture."""
        key = (hashlib.blake2b(image.tobytes() + bytes(str(image.shape), "ascii"), digest_size=16).digest(), phrase)
        if key not in self.kept:
            boxes = self._boxes(image, phrase)
            mask = self._outline(image, boxes) if boxes else None
            self.kept[key] = None if mask is None or not mask.any() else np.packbits(mask)
            if len(self.kept) > KEPT_MASKS:
                del self.kept[next(iter(self.kept))]
        bits = self.kept[key]
        if bits is None:
            return None
        height, width = image.shape[:2]
        return np.unpackbits(bits, count=height * width).view(np.bool_).reshape(height, width)

    @torch.inference_mode()
    def _boxes(self, image: UInt8Array, phrase: str) -> list[list[float]]:
        """Detect what a phrase names: boxes of left, top, right and bottom in px, the most certain first."""
        tokenizer, pixels = self.words.tokenizer, self.words.image_processor
        texts = tokenizer([self._text(phrase)], truncation=True, max_length=self._longest, return_tensors="pt")
        inputs = {**texts, **pixels(images=Image.fromarray(image), return_tensors="pt")}
        outputs = self.detector(**{name: value.to(self.options.device) for name, value in inputs.items()})
        sizes = torch.tensor([image.shape[:2]], device=self.options.device)
        (found,) = pixels.post_process_object_detection(outputs, threshold=self.options.threshold, target_sizes=sizes)
        order = torch.argsort(found["scores"], descending=True, stable=True)
        boxes: list[list[float]] = found["boxes"][order].tolist()
        return boxes

    def _text(self, phrase: str) -> str:
        # Grounding DINO has been trained on such sentences; the others read the words alone.
        return f"{phrase.lower().rstrip('. ')}." if "grounding" in self.detector.config.model_type else phrase

    @property
    def _longest(self) -> int:
        longest: int = min(self.words.tokenizer.model_max_length, self.detector.config.text_config.max_position_embeddings)
        return longest

    def _is_cut(self, phrase: str) -> bool:
        return len(self.words.tokenizer(self._text(phrase))["input_ids"]) > self._longest

    @torch.inference_mode()
    def _outline(self, image: UInt8Array, boxes: Sequence[Sequence[float]]) -> BoolArray:
        """Return the mask (height, width) of what stands in boxes: of any of them."""
        height, width = image.shape[:2]
        mask = np.zeros((height, width), dtype=np.bool_)
        if self.model is None:
            for left, top, right, bottom in np.clip(np.rint(boxes), 0, [width, height, width, height]).astype(int):
                mask[top:bottom, left:right] = True
            return mask
        for start in range(0, len(boxes), BOXES):
            given = [list(map(list, boxes[start : start + BOXES]))]
            inputs = self.outlines(images=Image.fromarray(image), input_boxes=given, return_tensors="pt")
            sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
            boxed = {name: value.to(self.options.device, self._kind(value)) for name, value in inputs.items()}
            outputs = self.model(**boxed, multimask_output=False)
            (found,) = self.outlines.post_process_masks(outputs.pred_masks.cpu(), **sizes)
            mask |= found.flatten(0, -3).any(dim=0).numpy()
        return mask

    @staticmethod
    def _kind(value: Any) -> torch.dtype:
        return torch.float32 if value.is_floating_point() else value.dtype

    def _load(self, name: str, kind: Any, folder: Path) -> tuple[Any, Any]:
        import transformers

        def load() -> tuple[Any, Any]:
            network, info = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
            check_whole(f"segmenter.{name}", repr(getattr(self.options, name)), info["missing_keys"], len(network.state_dict()))
            processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            return network.to(self.options.device).eval(), processor

        loaded: tuple[Any, Any] = self._try(name, load)
        return loaded

    def _try(self, name: str, work: Any) -> Any:
        try:
            with quiet_libraries():
                return work()
        except ConfigError:
            raise
        except Exception as error:  # each kind of network stumbles over a wrong file in its own way
            allowed = {"detector": "a zero-shot object detector such as OWLv2 or Grounding DINO", "model": "SAM or one like it"}
            got = getattr(self.options, name)
            raise ConfigError(
                f"segmenter.{name}: got {got!r}, which does not work ({first_line(error)}); allowed: {allowed[name]}, with its processor"
            ) from error


def _folder(option: str, name: str) -> Path:
    folder = local_path(name)
    if folder.is_dir():
        return folder
    repository, _ = split_hub_id(option, name, allowed="a folder of transformers, or a hub id like owner/name")
    return download(repository, option, None, PATTERNS)
