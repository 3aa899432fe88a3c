"""The attention processor that obeys an `AttentionControl`, and how it gets into a UNet and out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vimaedit.attention.control import AttentionControl
from vimaedit.attention.sites import SiteChoice

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


class LayerContext(NamedTuple):
    """The keys and values that a layer makes of the text and of each image prompt; nothing else goes into them.

    Shapes: (R, T, H, D) and (R, I, H, D).
    """

    text: tuple[Tensor, Tensor]
    images: tuple[tuple[Tensor, Tensor], ...]


class ControlledProcessor(nn.Module):
    """Wrap a stock processor: without a control it is the stock processor, with one it routes, folds and records.

    The stock processor keeps the weights it owns (the IP-Adapter's keys and values).
    """

    def __init__(self, stock: Any, *, name: str, choice: SiteChoice) -> None:
        super().__init__()
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        self.stock = stock
        self.name = name
        self.routes_self = name in choice.self_routing
        self.routes_image = name in choice.image_routing
        self.records_self = name in choice.self_maps
        self.records_words = name in choice.text_maps
        self.is_before_text = name in choice.before_text
        self._attention_backend = None  # diffusers' `set_attention_backend` sets it per processor
        self._dispatch = dispatch_attention_fn

    # Not `forward`: diffusers reads the parameter names of `__call__` to decide which keyword arguments to hand over.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, list[Tensor]] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        control: AttentionControl | None = None,
        contexts: Mapping[str, LayerContext] | None = None,
    ) -> Tensor:
        if control is None:
            output: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return output
        assert attention_mask is None and attn.spatial_norm is None and attn.group_norm is None and not attn.norm_cross
        query_RLHD = split_heads(attn.to_q(hidden_states), attn.heads)
        if encoder_hidden_states is None:
            attended = self._self_attention(attn, query_RLHD, hidden_states, control)
        else:
            context = self.project(attn, encoder_hidden_states) if contexts is None else contexts[self.name]
            attended = self._cross_attention(query_RLHD, context, control, attn.scale)
        attended = attended.flatten(2).to(hidden_states.dtype)
        attended = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            attended = attended + hidden_states
        if attn.rescale_output_factor != 1:
            attended = attended / attn.rescale_output_factor
        finished: Tensor = attended
        return finished

    def project(self, attn: Attention, context: Tensor | tuple[Tensor, list[Tensor]]) -> LayerContext:
        """Make the layer's keys and values of what the UNet hands to it."""
        text_RTE, images = context if isinstance(context, tuple) else (context, [])
        projected = []
        for image_RIE, to_k, to_v in zip(images, self._stock_list("to_k_ip"), self._stock_list("to_v_ip"), strict=True):
            image_RIE = image_RIE.flatten(1, -2)  # (row, picture, token, E): the tokens of several pictures stand in a row
            projected.append((split_heads(to_k(image_RIE), attn.heads), split_heads(to_v(image_RIE), attn.heads)))
        text = split_heads(attn.to_k(text_RTE), attn.heads), split_heads(attn.to_v(text_RTE), attn.heads)
        return LayerContext(text=text, images=tuple(projected))

    def _self_attention(self, attn: Attention, query_RLHD: Tensor, hidden_states: Tensor, control: AttentionControl) -> Tensor:
        key_RMHD = split_heads(attn.to_k(hidden_states), attn.heads)
        value_RMHD = split_heads(attn.to_v(hidden_states), attn.heads)
        if self.routes_self and control.self_from is not None:
            keys_from = control.self_from if control.self_keys_from is None else control.self_keys_from
            query_RLHD, key_RMHD = query_RLHD[control.self_from], key_RMHD[keys_from]
            if control.self_values_from is not None:
                value_RMHD = value_RMHD[control.self_values_from]
        if self.records_self and control.recorder is not None:  # what is read are the weights after the controls acted
            control.recorder.add_self(query_RLHD, key_RMHD, attn.scale)
        if self.is_before_text and not self.routes_self and control.apart is not None and control.apart_of is not None:
            # Rows of one branch are still equal here: each is attended once.
            query_RLHD, key_RMHD, value_RMHD = (each[control.apart] for each in (query_RLHD, key_RMHD, value_RMHD))
            return self._attend(query_RLHD, key_RMHD, value_RMHD)[control.apart_of]
        return self._attend(query_RLHD, key_RMHD, value_RMHD)

    def _cross_attention(self, query_RLHD: Tensor, context: LayerContext, control: AttentionControl, scale: float) -> Tensor:
        key_RTHD, value_RTHD = context.text
        if self.records_words and control.recorder is not None:
            control.recorder.add_words(query_RLHD, key_RTHD, scale)
        if control.text_probe is not None:
            control.text_probe.add(query_RLHD, key_RTHD, scale)
        if control.text_rows is None:
            attended = self._attend(query_RLHD, key_RTHD, value_RTHD)
        else:
            attended = self._edited_text(query_RLHD, key_RTHD, value_RTHD, control)
        for key_RIHD, value_RIHD in context.images:
            attended = attended + self._image_attention(query_RLHD, key_RIHD, value_RIHD, control)
        return attended

    def _edited_text(self, query_RLHD: Tensor, key_RTHD: Tensor, value_RTHD: Tensor, control: AttentionControl) -> Tensor:
        assert control.text_rows is not None and control.text_from is not None
        assert control.text_keep is not None and control.text_fold is not None
        kept_RTHD = value_RTHD * control.text_keep[:, :, None, None]
        attended = self._attend(query_RLHD, key_RTHD, kept_RTHD)
        folded_PTHD = torch.einsum("pst,pthd->pshd", control.text_fold, value_RTHD[control.text_rows])
        source = self._attend(query_RLHD[control.text_from], key_RTHD[control.text_from], folded_PTHD)
        return attended.index_add(0, control.text_rows, source)

    def _image_attention(self, query_RLHD: Tensor, key_RIHD: Tensor, value_RIHD: Tensor, control: AttentionControl) -> Tensor:
        if self.routes_image and control.image_from is not None:
            query_RLHD, key_RIHD = query_RLHD[control.image_from], key_RIHD[control.image_from]
        return control.image_scale[:, None, None, None] * self._attend(query_RLHD, key_RIHD, value_RIHD)

    def _stock_list(self, name: str) -> list[Any]:
        return list(getattr(self.stock, name, ()))

    def _attend(self, query_RLHD: Tensor, key_RMHD: Tensor, value_RMHD: Tensor) -> Tensor:
        attended: Tensor = self._dispatch(query_RLHD, key_RMHD, value_RMHD, backend=self._attention_backend)
        return attended


def install(denoiser: Any, choice: SiteChoice, wrapper: Callable[..., nn.Module] = ControlledProcessor) -> None:
    """Wrap every attention processor of a denoiser. Load IP-Adapter and LoRA before; a second call replaces the first."""
    uninstall(denoiser)
    wrapped = {name: wrapper(stock, name=name, choice=choice) for name, stock in denoiser.attn_processors.items()}
    denoiser.set_attn_processor(wrapped)


def uninstall(denoiser: Any) -> None:
    """Put the stock processors back, the very same objects."""
    processors = denoiser.attn_processors
    stock = {name: getattr(each, "stock", each) for name, each in processors.items()}
    if any(stock[name] is not processors[name] for name in stock):
        denoiser.set_attn_processor(stock)


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """Split what was projected into heads, (R, L, H D) -> (R, L, H, D)."""
    split: Tensor = projected.unflatten(-1, (heads, -1))
    return split
