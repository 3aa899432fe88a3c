"""The controlled processor against explicit probability maps, on one real attention layer with prime sizes."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor

from tests.component.conftest import request
from vimaedit.attention.control import AttentionControl, plain_control
from vimaedit.attention.processor import ControlledProcessor
from vimaedit.attention.recorder import MapRecorder
from vimaedit.attention.sites import SiteChoice
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.loop import condition_rows

ROWS, QUERIES, TOKENS, IMAGE_TOKENS, HEADS, HEAD_SIZE, TEXT_WIDTH = 5, 11, 7, 3, 3, 5, 13
WIDTH = HEADS * HEAD_SIZE
NAME = "layer"
EVERYWHERE = SiteChoice(*(frozenset({NAME}) for _ in range(4)))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(*, cross: bool, image: bool = False) -> tuple[Attention, ControlledProcessor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attn = Attention(WIDTH, TEXT_WIDTH if cross else None, heads=HEADS, dim_head=HEAD_SIZE, residual_connection=True)
        stock = (
            IPAdapterAttnProcessor2_0(WIDTH, TEXT_WIDTH, num_tokens=(IMAGE_TOKENS,), scale=0.4) if image else AttnProcessor2_0()
        )
    processor = ControlledProcessor(stock, name=NAME, choice=EVERYWHERE)
    attn.set_processor(processor)
    return attn.eval().requires_grad_(False), processor


def idle() -> AttentionControl:
    own = torch.arange(ROWS)
    return AttentionControl(
        self_from=own,
        image_from=own.clone(),
        image_scale=torch.full((ROWS,), 0.4),
        text_rows=torch.tensor([4, 1]),
        text_from=torch.tensor([2, 0]),
        text_fold=torch.zeros(2, TOKENS, TOKENS),
        text_keep=torch.ones(ROWS, TOKENS),
        recorder=None,
    )


def probabilities(attn: Attention, x: Tensor, context: Tensor, to_k: torch.nn.Module | None = None) -> Tensor:
    query = attn.to_q(x).view(ROWS, -1, HEADS, HEAD_SIZE).transpose(1, 2).double()
    key = (to_k or attn.to_k)(context).view(ROWS, -1, HEADS, HEAD_SIZE).transpose(1, 2).double()
    return (query @ key.transpose(2, 3) / HEAD_SIZE**0.5).softmax(-1)


def output(attn: Attention, x: Tensor, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Finish attention from (probabilities, values) parts, which are summed."""
    total = sum(
        (p @ v.view(ROWS, -1, HEADS, HEAD_SIZE).transpose(1, 2).double()).transpose(1, 2).reshape(ROWS, -1, WIDTH)
        for p, v in parts
    )
    return attn.to_out[0](total.float()) + x


@pytest.mark.parametrize("image", [False, True])
def test_without_a_control_it_is_the_stock_processor_bit_for_bit(image: bool) -> None:
    attn, processor = layer(cross=True, image=image)
    x, text = draw(1, ROWS, QUERIES, WIDTH), draw(2, ROWS, TOKENS, TEXT_WIDTH)
    context = (text, [draw(3, ROWS, 1, IMAGE_TOKENS, TEXT_WIDTH)]) if image else text
    own = attn(x, context)
    attn.set_processor(processor.stock)
    assert torch.equal(own, attn(x, context))


def test_an_idle_control_changes_nothing() -> None:
    attn, _ = layer(cross=True, image=True)
    x, context = (
        draw(1, ROWS, QUERIES, WIDTH),
        (draw(2, ROWS, TOKENS, TEXT_WIDTH), [draw(3, ROWS, 1, IMAGE_TOKENS, TEXT_WIDTH)]),
    )
    torch.testing.assert_close(attn(x, context, control=idle()), attn(x, context), atol=1e-6, rtol=0)


def test_self_routing_takes_the_sources_weights_and_records_them() -> None:
    attn, _ = layer(cross=False)
    x = draw(1, ROWS, QUERIES, WIDTH)
    routes = torch.tensor([0, 0, 2, 3, 2])
    recorder = MapRecorder(
        rows=torch.tensor([0, 2, 1, 4]),
        word_from=torch.empty(0, dtype=torch.int64),
        word_own=torch.empty(0),
        word_source=torch.empty(0),
        self_sum=torch.zeros(4, QUERIES, QUERIES),
        word_sum=torch.empty(0),
    )
    own = attn(x, control=dataclasses.replace(idle(), self_from=routes, recorder=recorder))
    maps = probabilities(attn, x, x)
    torch.testing.assert_close(own, output(attn, x, (maps[routes], attn.to_v(x))), atol=2e-6, rtol=0)
    torch.testing.assert_close(recorder.self_sum, maps[[0, 2, 0, 2]].sum(1).float(), atol=2e-6, rtol=0)  # 1 and 4 are routed


def test_folding_equals_editing_the_maps_and_records_the_edited_words() -> None:
    attn, _ = layer(cross=True)
    x, text = draw(1, ROWS, QUERIES, WIDTH), draw(2, ROWS, TOKENS, TEXT_WIDTH)
    control = idle()
    fold, keep = draw(4, 2, TOKENS, TOKENS).abs(), torch.ones(ROWS, TOKENS)
    keep[control.text_rows] = draw(5, 2, TOKENS).abs()
    words = (draw(6, 2, 2, TOKENS) > 0).float()  # branch, request, token
    recorder = MapRecorder(
        rows=torch.cat([control.text_from, control.text_rows]),
        word_from=torch.cat([control.text_from, control.text_from]),
        word_own=torch.cat([words[0], keep[control.text_rows] * words[1]]),
        word_source=torch.cat([torch.zeros(2, TOKENS), torch.einsum("pst,pt->ps", fold, words[1])]),
        self_sum=None,
        word_sum=torch.zeros(4, QUERIES),
    )
    own = attn(x, text, control=dataclasses.replace(control, text_fold=fold, text_keep=keep, recorder=recorder))
    maps = probabilities(attn, x, text)
    edited = maps.clone()
    for p, (row, source) in enumerate(zip(control.text_rows, control.text_from, strict=True)):
        edited[row] = maps[source] @ fold[p].double() + maps[row] * keep[row].double()
    torch.testing.assert_close(own, output(attn, x, (edited, attn.to_v(text))), atol=5e-6, rtol=0)
    rows = torch.cat([control.text_from, control.text_rows])
    expected = torch.einsum("qhlt,qt->ql", edited[rows], words.flatten(0, 1).double())
    torch.testing.assert_close(recorder.word_sum, expected.float(), atol=5e-6, rtol=0)


def test_image_attention_has_a_scale_and_a_source_per_row() -> None:
    attn, processor = layer(cross=True, image=True)
    x, text, image = (
        draw(1, ROWS, QUERIES, WIDTH),
        draw(2, ROWS, TOKENS, TEXT_WIDTH),
        draw(3, ROWS, 1, IMAGE_TOKENS, TEXT_WIDTH),
    )
    routes, scale = torch.tensor([0, 0, 2, 3, 2]), torch.tensor([0.0, 0.4, 1.0, 0.7, 0.2])
    own = attn(x, (text, [image]), control=dataclasses.replace(idle(), image_from=routes, image_scale=scale))
    to_k, to_v = processor.stock.to_k_ip[0], processor.stock.to_v_ip[0]
    image_maps = probabilities(attn, x, image[:, 0], to_k)[routes] * scale.double().view(-1, 1, 1, 1)
    expected = output(attn, x, (probabilities(attn, x, text), attn.to_v(text)), (image_maps, to_v(image[:, 0])))
    torch.testing.assert_close(own, expected, atol=5e-6, rtol=0)


def test_keys_and_values_made_once_give_the_same_passes_bit_for_bit(make_editor: Callable[..., BatchEditor]) -> None:
    editor = make_editor(steps=6, grounding_start=0.5)
    edits = [editor.prepare(request(n)) for n in range(2)]
    batch = editor.encode(edits)
    projection = editor.backbone.networks.denoiser.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    calls: list[int] = []
    hook = projection.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    try:
        editor.run(batch, edits)
        assert calls == [6]  # three rows for each edit, whatever the number of steps
        conditioning = condition_rows(batch, batch.layout)
        latents, timestep = torch.randn(6, *batch.x0.shape[1:]), torch.tensor(501)
        control = plain_control(torch.full((6,), 0.4))
        once = editor.backbone.predict(latents, timestep, editor.backbone.with_contexts(conditioning), control)
        anew = editor.backbone.predict(latents, timestep, conditioning, control)
    finally:
        hook.remove()
    assert torch.equal(once, anew) and calls == [6, 6, 6]
