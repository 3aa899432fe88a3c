"""The built-in flow models: stock pipelines load them, their bytes are fixed, their numbers are of ordinary size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from tests.component.conftest import picture, request
from vimaedit.config import EditConfig
from vimaedit.miniature.random_bundle import LAYOUT_VERSION
from vimaedit.miniature.random_flow import KINDS, random_flow_bundle, write_random_flow
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.family import pipeline_class
from vimaedit.models.files import ModelFacts
from vimaedit.step.solvers import move

# Of all weight files of seed 0. When one changes, LAYOUT_VERSION must be raised: old bundles lie in people's caches.
WEIGHTS_DIGESTS = {
    ("random-sd3", 3): "b7adab6349d0cb3342930375dad65703a4e87aca5a62880828f3cd87c0a50658",
    ("random-flux", 3): "1fdfaab348eebbec800610f8cf623f5687b7b059b7e820a3f25f57dcf17117d2",
}


@pytest.mark.parametrize("name", KINDS)
def test_bytes_are_fixed(name: str, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    folder = random_flow_bundle(name, tmp_path)
    write_random_flow(tmp_path / "other", KINDS[name], seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = sorted(folder.rglob("*.safetensors"))
    assert all(path.read_bytes() != (tmp_path / "other" / path.relative_to(folder)).read_bytes() for path in weights)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    assert digest == WEIGHTS_DIGESTS[name, LAYOUT_VERSION]
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 6e6


def test_the_stock_pipeline_draws_the_same_picture(flow_model: tuple[Networks, ModelFacts]) -> None:
    """Texts, levels, guidance, packing and steps of the family's file, against its pipeline's own."""
    family = flow_model[0].family
    folder = random_flow_bundle(flow_model[1].name) / family.folder
    pipe = pipeline_class(family).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    prompt, scale = request(0).target_prompt, 4.0
    stock = pipe(
        prompt,
        num_inference_steps=3,
        guidance_scale=scale,
        height=128,
        width=128,
        output_type="latent",
        generator=torch.Generator().manual_seed(4),
    ).images
    backbone = Backbone(flow_model[0], EditConfig(steps=3))
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(4))
    texts = ["", prompt][family.kind.embeds_guidance :]
    conditioning = backbone.condition(backbone.encode_texts(texts), None, (128, 128))
    if family.kind.embeds_guidance:
        conditioning = conditioning.having(guidance=torch.tensor([scale]))
    schedule = backbone.schedule(EditConfig(steps=3), (16, 16))
    for i, timestep in enumerate(schedule.timesteps):
        predicted = backbone.predict(torch.cat([x] * len(texts)), torch.tensor(timestep), conditioning, None)
        velocity = predicted if len(texts) == 1 else predicted[:1] + scale * (predicted[1:] - predicted[:1])
        x = move(x, velocity, schedule.levels[i], schedule.next_levels[i])
    if family.kind.embeds_guidance:
        stock = pipe._unpack_latents(stock, 128, 128, 8)
    torch.testing.assert_close(x, stock, atol=1e-4, rtol=0)


def test_latents_have_about_unit_size(flow_model: tuple[Networks, ModelFacts]) -> None:
    backbone = Backbone(flow_model[0], EditConfig())
    latents = backbone.encode_images(picture(1)[None])
    assert 0.5 < float(latents.std()) < 2
    decoded, finite = backbone.decode_latents(latents)
    assert bool(finite.all()) and decoded.shape == (1, 128, 128, 3) and 20 < float(decoded.std()) < 110
