"""From settings to an editor: find the model, load its networks, build the editor of the configured method on them."""

from __future__ import annotations

from vimaedit.config import NEEDS_GPU, EditConfig, ModelConfig
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import ModelFiles, model_facts, resolve_model
from vimaedit.models.networks import choose_device, load_networks


def load_editor(config: EditConfig, model: ModelConfig, files: ModelFiles | None = None) -> BatchEditor:
    """Load a model and build the editor of the configured method on it.

    Raises: ConfigError for what cannot be loaded or compiled.
    """
    if model.compile:
        config.check_compile()
        if choose_device(model.device).type == "cpu":
            raise ConfigError(NEEDS_GPU)
    files = files or resolve_model(model, image_guidance=config.image_guidance)
    backbone = Backbone(load_networks(files, model), config)
    if model.compile:
        backbone.compile()
    return BatchEditor(backbone, config, model_facts(files))
