"""Prompt-based image editing with ViMAEdit (arXiv 2410.10496): the method, for one picture or for batches."""

from vimaedit.config import Canvas, EditConfig, GroundingSides, Lora, ModelConfig, Thresholds, Windows
from vimaedit.errors import ConfigError, RequestError, VimaeditError
from vimaedit.pipeline import ViMAEditOutput, ViMAEditPipeline
from vimaedit.types import BlendPhrase, Editor, EditRequest, EditResult, RequestOverrides, Status

__version__ = "0.1.0"

__all__ = [
    "BlendPhrase",
    "Canvas",
    "ConfigError",
    "EditConfig",
    "EditRequest",
    "EditResult",
    "Editor",
    "GroundingSides",
    "Lora",
    "ModelConfig",
    "RequestError",
    "RequestOverrides",
    "Status",
    "Thresholds",
    "ViMAEditOutput",
    "ViMAEditPipeline",
    "VimaeditError",
    "Windows",
]
