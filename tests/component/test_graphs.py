"""No step-dependent Python state below the loop: one traced graph per structure serves all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.component.conftest import request
from vimaedit.editor import BatchEditor
from vimaedit.types import RequestOverrides


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_two_graphs_serve_a_whole_run(make_editor: Callable[..., BatchEditor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps before grounding and steps that record: two graphs, whatever windows open and close in between."""
    editor = make_editor(steps=7, grounding_start=0.5)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    unet = editor.backbone.networks.unet
    compiled = torch.compile(unet.forward, backend=count, fullgraph=True, dynamic=False)
    monkeypatch.setattr(unet, "forward", compiled)
    requests = [request(0), request(1, overrides=RequestOverrides(self_window=0.9, text_window=0.2, image_window=0.4))]
    results = editor(requests)
    assert all(result is not None and result.status == "ok" for result in results)
    assert len(graphs) == 2
    editor([request(2), request(3)])
    assert len(graphs) == 2
