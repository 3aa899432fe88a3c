"""What attention does differently in one step: a flat object of tensors, new each step, read by `ControlledProcessor`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vimaedit.attention.recorder import MapRecorder, TextProbe


@dataclass(frozen=True, eq=False)
class ValueBank:
    """Values that some layers had in one pass, for the same layers in another: (R, M, H, D) by layer. `puts`: they are put in there,
    else they are kept."""

    layers: frozenset[str]
    kept: dict[str, Tensor]
    puts: bool

    def exchange(self, layer: str, value_RMHD: Tensor) -> Tensor:
        """Return the values that a layer is to use."""
        if layer not in self.layers:
            return value_RMHD
        if self.puts:
            return self.kept[layer]
        self.kept[layer] = value_RMHD
        return value_RMHD


@dataclass(frozen=True, eq=False)
class AttentionControl:
    """Routing and folding of one UNet call.

    Routing: a row that takes over another row's attention weights uses that row's queries and keys with its own values; keys and
    values may come from rows of their own.
    Folding: an edited text map is linear in the source's and the own map, P_edit = P_source W + P_own diag(w), hence
    P_edit V = attend(Q_s, K_s, W V) + attend(Q, K, w V).

    Shapes: `self_from`, `image_from` (R,) int64, the row whose weights each row uses (its own: no change); `image_scale` (R,);
    `text_rows`, `text_from` (P,) int64, the edited rows and their source rows; `text_fold` (P, T, T) = W; `text_keep` (R, T) = w,
    1 in rows that are not edited. `recorder` None: no weights are read in this step. None in `self_from`, `image_from`,
    `text_rows`: every row is its own. `self_keys_from` None: as `self_from`; `self_values_from` None: its own.
    `features_from` (R,), the row whose features each row has at the feature layer. `apart` (U,) int64, the rows that differ before
    any text is read, `apart_of` (R,), which of these each row equals until then; None: all differ.
    `text_probe`: keeps all text attention. `values`: of joint attention, kept or put in.
    """

    self_from: Tensor | None
    image_from: Tensor | None
    image_scale: Tensor
    text_rows: Tensor | None
    text_from: Tensor | None
    text_fold: Tensor | None
    text_keep: Tensor | None
    recorder: MapRecorder | None
    self_keys_from: Tensor | None = None
    self_values_from: Tensor | None = None
    features_from: Tensor | None = None
    apart: Tensor | None = None
    apart_of: Tensor | None = None
    text_probe: TextProbe | None = None
    values: ValueBank | None = None


def plain_control(image_scale: Tensor) -> AttentionControl:
    """Return a control that changes nothing but the scale of the image attention, (R,)."""
    return AttentionControl(None, None, image_scale, None, None, None, None, None)
