"""No step-dependent Python state below the loop: one traced graph per structure serves all steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.component.conftest import request
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.load import load_editor
from vimaedit.errors import ConfigError
from vimaedit.miniature.random_bundle import Layout, write_random_bundle
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import model_facts, recipe_config, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.pipeline import ViMAEditPipeline
from vimaedit.types import RequestOverrides

FEW_LAYERS = Layout(name="few", canvas_size=64, channels=(32, 48), layers_per_block=1, heads=4, grounding_sides=(1.0, 1.0))


@pytest.fixture(scope="module")
def make_editor(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BatchEditor]:
    """Build editors on a model of few layers: what traces them takes its time by the layer."""
    folder = tmp_path_factory.mktemp("models") / "few"
    write_random_bundle(folder, layout=FEW_LAYERS)
    model = ModelConfig(model=str(folder), dtype="float32", device="cpu")
    files = resolve_model(model)
    networks, facts = load_networks(files, model), model_facts(files)

    def make(**options: Any) -> BatchEditor:
        config = EditConfig(**options)
        return BatchEditor(Backbone(networks, config), config, facts)

    return make


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("guidance_end", "count"), [(1.0, 2), pytest.param(0.6, 3, marks=pytest.mark.slow)])
def test_few_graphs_serve_a_whole_run(make_editor: Callable[..., BatchEditor], guidance_end: float, count: int) -> None:
    """Steps before grounding and steps that record: two graphs, whatever windows open and close in between; the same pictures.

    Steps without guidance have fewer rows, so a graph of their own.
    """
    options = {"steps": 7, "grounding_start": 0.5, "guidance_end": guidance_end}
    editor = make_editor(**options)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    editor.backbone.compile(backend=keep)
    graphs.clear()  # of the pass that tries whether anything can be compiled
    requests = [request(0), request(1, overrides=RequestOverrides(self_window=0.9, text_window=0.2, image_window=0.4))]
    results = editor(requests)
    assert all(result is not None and result.status == "ok" for result in results)
    assert len(graphs) == count
    for result, eager in zip(results, make_editor(**options)(requests), strict=True):
        assert result.image is not None and eager.image is not None
        np.testing.assert_array_equal(result.image, eager.image)
        np.testing.assert_array_equal(result.edit_mask, eager.edit_mask)
    editor([request(2), request(3)])
    assert len(graphs) == count


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["random-xl", "random-sd3", "random-flux"])
def test_every_family_is_two_graphs_and_gives_the_same(name: str) -> None:
    config = dataclasses.replace(recipe_config(name), steps=4, grounding_start=0.5)
    model = ModelConfig(model=name, device="cpu", dtype="float32")
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    eager = load_editor(config, model)([request(0), request(1)])
    torch._dynamo.reset()
    editor = load_editor(config, model)
    editor.backbone.compile(backend=keep)
    graphs.clear()
    for result, other in zip(editor([request(0), request(1)]), eager, strict=True):
        assert result is not None and other is not None and result.image is not None
        np.testing.assert_array_equal(result.image, other.image)
    assert len(graphs) == 2


def test_a_machine_that_cannot_compile_says_so_before_any_edit(make_editor: Callable[..., BatchEditor]) -> None:
    def fail(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    torch._dynamo.reset()
    with pytest.raises(ConfigError, match="^compile: got true, but torch cannot compile here .*no compiler"):
        make_editor(steps=2).backbone.compile(backend=fail)


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ConfigError, match="^compile: got true on a CPU; allowed: false, or device=cuda$"):
        ModelConfig(compile=True, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="^compile: got true on a CPU; allowed: false, or device=cuda$"):
            load_editor(EditConfig(), ModelConfig(model="random", compile=True))
    with pytest.raises(ConfigError, match="^compile: got true; allowed: false, for single pictures"):
        ViMAEditPipeline.from_pretrained("random", compile=True)
    with pytest.raises(ConfigError, match="^compile: got true with method=pnp; allowed: false$"):
        load_editor(recipe_config("random", "pnp"), ModelConfig(model="random", compile=True))
