"""DINO's keys, LPIPS and the CLIP score on small random networks against slow formulas and transformers; loading them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vimaedit.config import ModelConfig
from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.images import clip_view
from vimaedit.metrics import backbones
from vimaedit.metrics.backbones import find_weights, read_tensors, weights_file
from vimaedit.metrics.clip import ClipScore
from vimaedit.metrics.dino import KeyNetwork, dino_pixels, load_dino, self_similarity, structure_distance
from vimaedit.metrics.lpips import WIDTHS, LpipsNetwork, load_lpips, lpips_distance
from vimaedit.metrics.pixels import to_pictures, to_regions
from vimaedit.metrics.suite import MetricSuite, clip_of_part
from vimaedit.models.files import resolve_model

DEPTH, WIDTH, HIDDEN = 2, 36, 43


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pictures(count: int, seed: int, shape: tuple[int, int] = (67, 67)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, *shape, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    """Return transformers' own ViT in the layout of DINO ViT-B/8, narrow and shallow."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": DEPTH, "num_attention_heads": 12}
    config = ViTConfig(**sizes, patch_size=8, image_size=224, layer_norm_eps=1e-6, initializer_range=0.5)
    return ViTModel(config, add_pooling_layer=False).eval()


@pytest.fixture(scope="module")
def dino_files(vit: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one network in every form that is published: transformers' folder, original tensors, training checkpoint."""
    folder = tmp_path_factory.mktemp("dino")
    (folder / "hf").mkdir()
    tensors = hf_names(vit)
    save_file(tensors, folder / "hf" / "model.safetensors")
    original = load_dino(str(folder / "hf")).state_dict()
    torch.save(original, folder / "dino.pth")
    checkpoint = {"student": {}, "teacher": {f"module.backbone.{key}": value for key, value in original.items()}, "epoch": 3}
    torch.save(checkpoint, folder / "full.pth")
    return {"hf": folder / "hf", "pth": folder / "dino.pth", "full": folder / "full.pth"}


def hf_names(vit: torch.nn.Module) -> dict[str, Tensor]:
    """Return a ViT's weights under the names of the published copies, whatever the installed transformers calls them."""
    config = vit.config
    wanted = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    found: dict[str, Tensor] = {}
    for key, value in vit.state_dict().items():
        name = re.sub(r"^layers\.", "encoder.layer.", key)
        for old, new in wanted.items():
            name = re.sub(rf"\.attention\.{new}\.", f".attention.attention.{old}.", name)
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
        name = name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")
        found[name] = value.contiguous()
    assert f"encoder.layer.{config.num_hidden_layers - 1}.attention.attention.key.weight" in found, sorted(found)
    return found


def test_every_form_gives_the_keys_of_transformers(vit: torch.nn.Module, dino_files: dict[str, Path]) -> None:
    pixels = dino_pixels(to_pictures(pictures(2, 0)))
    with torch.inference_mode():
        hidden = vit(pixels, output_hidden_states=True).hidden_states[DEPTH - 1]
        tensors = hf_names(vit)
        layer = f"encoder.layer.{DEPTH - 1}."
        norm = [tensors[f"{layer}layernorm_before.{part}"] for part in ("weight", "bias")]
        normed = torch.nn.functional.layer_norm(hidden, (WIDTH,), *norm, eps=1e-6)
        key = [tensors[f"{layer}attention.attention.key.{part}"] for part in ("weight", "bias")]
        expected = torch.nn.functional.linear(normed, *key)
        for path in dino_files.values():
            torch.testing.assert_close(load_dino(str(path))(pixels), expected, rtol=1e-4, atol=1e-4)


def test_structure_distance_is_the_error_of_all_cosines(dino_files: dict[str, Path]) -> None:
    network = load_dino(str(dino_files["pth"]))
    source, edited = pictures(2, 1), pictures(2, 2)
    with torch.inference_mode():
        found = structure_distance(network, to_pictures(source), to_pictures(edited))
        for n in range(2):
            cosines = []
            for picture in (source[n], edited[n]):
                keys = network(dino_pixels(to_pictures([picture])))[0].double().numpy()
                unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
                cosines.append(unit @ unit.T)
            assert cosines[0].shape == (785, 785)
            assert found[n].item() == pytest.approx(np.square(cosines[0] - cosines[1]).mean(), rel=1e-4)
        empty = to_regions([np.zeros((67, 67), dtype=bool), np.ones((67, 67), dtype=bool)])
        masked = structure_distance(network, to_pictures(source), to_pictures(edited), empty)
    assert math.isnan(masked[0].item()) and masked[1].item() == pytest.approx(found[1].item(), rel=1e-5)


def test_keys_of_length_zero_have_cosine_zero() -> None:
    assert self_similarity(torch.zeros(1, 3, 5)).tolist() == [[[0.0] * 3] * 3]


@pytest.mark.parametrize(("shape", "size"), [((64, 64), (224, 224)), ((100, 150), (224, 336)), ((300, 100), (480, 160))])
def test_pictures_are_brought_to_224_px_and_at_most_480(
    dino_files: dict[str, Path], shape: tuple[int, int], size: tuple[int, int]
) -> None:
    pixels = dino_pixels(to_pictures(pictures(1, 3, shape)))
    assert pixels.shape[-2:] == size
    with torch.inference_mode():
        assert load_dino(str(dino_files["pth"]))(pixels).shape == (1, 1 + (size[0] // 8) * (size[1] // 8), WIDTH)


def test_values_stay_up_to_255() -> None:
    white = dino_pixels(to_pictures([np.full((19, 19, 3), 255, dtype=np.uint8)]))
    assert white[0, :, 7, 7].tolist() == pytest.approx([(255 - 0.485) / 0.229, (255 - 0.456) / 0.224, (255 - 0.406) / 0.225])


def slow_layers(network: LpipsNetwork, picture: Tensor) -> list[Tensor]:
    """Run SqueezeNet 1.1 as it is published, in float64."""
    weights = {key: value.double() for key, value in network.state_dict().items()}

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return torch.nn.functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    x = (picture - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x = conv(x.double(), "features.0", stride=2).relu()
    layers = [x]
    for number in range(2, 13):
        if number in (2, 5, 8):
            x = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
            continue
        squeezed = conv(x, f"features.{number}.squeeze").relu()
        wide = conv(squeezed, f"features.{number}.expand3x3", padding=1)
        x = torch.cat([conv(squeezed, f"features.{number}.expand1x1"), wide], dim=1).relu()
        if number in (4, 7, 9, 10, 11, 12):
            layers.append(x)
    return layers


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a random SqueezeNet with its classifier as torchvision publishes it, and heads as LPIPS does."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(1)
    network = LpipsNetwork()
    tensors = {key: value for key, value in network.state_dict().items() if key.startswith("features.")}
    torch.save(
        {**tensors, "classifier.1.weight": torch.zeros(3), "classifier.1.bias": torch.zeros(3)}, folder / "squeezenet.pth"
    )
    heads = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(WIDTHS)}
    torch.save(heads, folder / "squeeze.pth")
    return folder / "squeezenet.pth", folder / "squeeze.pth"


def test_lpips_is_the_formula(lpips_files: tuple[Path, Path]) -> None:
    network = load_lpips(*map(str, lpips_files))
    heads = torch.load(lpips_files[1])
    source, edited = pictures(2, 4, (71, 83)), pictures(2, 5, (71, 83))
    region = np.zeros((71, 83), dtype=bool)
    region[5:40, 11:60] = True
    regions = to_regions([region, region])
    with torch.inference_mode():
        found = lpips_distance(network, to_pictures(source), to_pictures(edited), regions)
        for n in range(2):
            layers = []
            for picture in (source[n], edited[n]):
                masked = torch.from_numpy(2.0 * (picture * region[..., None]) / 255 - 1).permute(2, 0, 1)[None]
                layers.append(slow_layers(network, masked.float()))
            total = 0.0
            for k, (a, b) in enumerate(zip(*layers, strict=True)):
                unit = [x / torch.sqrt(1e-8 + (x * x).sum(1, keepdim=True)) for x in (a, b)]
                total += ((unit[0] - unit[1]) ** 2 * heads[f"lin{k}.model.1.weight"].double()).sum(1).mean().item()
            assert found[n].item() == pytest.approx(total, rel=1e-4) and total > 0.01
        same = to_pictures(source)
        assert lpips_distance(network, same, same).tolist() == [0.0, 0.0]
        assert math.isnan(lpips_distance(network, same, same, torch.zeros(2, 1, 71, 83, dtype=torch.bool))[0].item())
        small = to_pictures(pictures(1, 6, (31, 83)))
        assert math.isnan(lpips_distance(network, small, small).item())
        least = to_pictures(pictures(1, 6, (32, 32)))
        assert lpips_distance(network, least, least).item() == 0.0


def test_heads_in_one_array_and_from_an_installed_package(
    lpips_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = load_lpips(*map(str, lpips_files))
    np.savez(tmp_path / "heads.npz", lpips_heads=torch.cat(list(by_name.heads)).numpy(), names=np.array(["a"]))
    package = tmp_path / "torchmetrics"
    file = package / "functional/image/lpips_models/squeeze.pth"
    file.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is not to be imported')")
    file.write_bytes(lpips_files[1].read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    for other in (load_lpips(str(lpips_files[0]), str(tmp_path / "heads.npz")), load_lpips(str(lpips_files[0]))):
        for ours, theirs in zip(by_name.heads, other.heads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.fixture(scope="module")
def clip_folder() -> str:
    folder = resolve_model(ModelConfig(model="random")).clip
    assert folder is not None
    return str(folder)


def test_the_clip_score_is_that_of_transformers(clip_folder: str) -> None:
    clip = ClipScore(clip_folder)
    texts = ["a red star on a blue background", "two moons", "a red star on a blue background"]
    images = pictures(3, 7, (97, 131))
    views = torch.from_numpy(np.stack([clip_view(image, clip.side) for image in images])).permute(0, 3, 1, 2)
    pixels = (views.float() / 255 - clip.mean) / clip.std
    with torch.inference_mode():
        expected = []
        for n, text in enumerate(texts):  # one text at a time, as the standard evaluation does
            ids = torch.tensor([clip.tokenizer(text).input_ids])
            expected.append(clip.model(input_ids=ids, pixel_values=pixels[n : n + 1]))
        cosines = [(each.image_embeds * each.text_embeds).sum().item() for each in expected]
        assert clip.cosines(images, texts).tolist() == pytest.approx(cosines, abs=1e-6)
        assert clip(images, texts).tolist() == pytest.approx([max(0.0, 100 * value) for value in cosines], abs=1e-4)


def test_negative_similarity_is_zero_and_an_empty_part_has_none(clip_folder: str) -> None:
    clip = ClipScore(clip_folder)
    images, texts = pictures(8, 8), ["a moon"] * 8
    with torch.inference_mode():
        cosines, scores = clip.cosines(images, texts), clip(images, texts)
        masks = [np.zeros((67, 67), dtype=bool), *[np.ones((67, 67), dtype=bool)] * 7]
        part = clip_of_part(clip, images, masks, texts)
    torch.testing.assert_close(scores, (100 * cosines).clamp(min=0))
    assert math.isnan(part[0].item())
    torch.testing.assert_close(part[1:], scores[1:], rtol=0, atol=1e-5)


def test_a_text_that_is_too_long_is_cut_without_its_end(clip_folder: str) -> None:
    clip = ClipScore(clip_folder)
    ids = clip.tokenizer("moon " * 200).input_ids
    assert len(ids) > clip.length
    with torch.inference_mode():
        embeds = clip.model.text_projection(clip.model.text_model(input_ids=torch.tensor([ids[: clip.length]])).pooler_output)
        torch.testing.assert_close(clip.embed_texts(["moon " * 200]), torch.nn.functional.normalize(embeds, dim=-1))


def broken(folder: Path, name: str, content: object) -> Path:
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            lambda folder: load_dino("nowhere.pth"),
            r"dino: got 'nowhere.pth', which is no file or folder here; allowed: a local",
        ),
        (lambda folder: load_dino("/no/such"), r"dino: got '/no/such', which is no file or folder here; allowed: a local path"),
        (lambda folder: load_dino("owner/name"), r"dino: got the hub id 'owner/name', which cannot be had: "),
        (lambda folder: load_dino(str(folder)), r"dino: got '.*', which holds 0 weight files; allowed: one \(.safetensors, "),
        (
            lambda folder: weights_file("lpips", [broken(folder, n, {}) for n in ("a.pth", "b.pth")][0].parent),
            r"lpips: got '.*', which holds 2 weight files; allowed: one",
        ),
        (
            lambda folder: load_dino(str(broken(folder, "a.pth", {"cls_token": torch.zeros(1, 1, 24)}))),
            r"dino: got '.*a.pth', which is no DINO ViT-B/8: 'blocks.0.mlp.fc1.weight' is missing; allowed: its weights",
        ),
        (
            lambda folder: load_lpips(str(broken(folder, "a.pth", {"features.0.weight": torch.zeros(1)}))),
            r"lpips: got '.*a.pth', which does not load: 49 of 50 tensors are missing \(features.0.bias, ",
        ),
        (
            lambda folder: read_tensors("dino", broken(folder, "a.pth", Path("x"))),
            r"dino: got '.*a.pth', which cannot be read: it holds more than tensors; allowed: .safetensors, .pth",
        ),
        (
            lambda folder: read_tensors("dino", broken(folder, "a.pth", [1])),
            r"dino: got '.*a.pth', which holds a list; allowed: tensors by name",
        ),
        (
            lambda folder: ClipScore(str(folder)),
            r"scoring_clip: got '.*', which does not load: .*; allowed: a transformers CLIP",
        ),
    ],
)
def test_weights_that_cannot_be_had_are_refused(load: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.compile(f"^{message}", re.DOTALL)):
        load(tmp_path)


def test_a_width_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    network = KeyNetwork(width=25, hidden=7, depth=1, patch=8, num_positions=785)
    path = broken(tmp_path, "dino.pth", network.state_dict())
    with pytest.raises(
        ConfigError, match=r"no DINO ViT-B/8: its width 25 does not divide among 12 heads; allowed: its weights$"
    ):
        load_dino(str(path))


def test_heads_for_another_network_and_none_at_all_are_refused(
    lpips_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = broken(tmp_path, "alex.pth", {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)})
    with pytest.raises(
        ConfigError, match=r"^lpips_heads: got '.*alex.pth' with heads of \[64\] channels; allowed: those for Sq"
    ):
        load_lpips(str(lpips_files[0]), str(wrong))
    monkeypatch.setattr(backbones, "HEAD_PACKAGES", {})
    with pytest.raises(
        ConfigError, match=r"^lpips_heads: got nothing, and no installed package has them; allowed: the path of"
    ):
        load_lpips(str(lpips_files[0]))


def test_a_hub_id_is_found_in_the_hubs_cache(
    dino_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "dino.pth").write_bytes(dino_files["pth"].read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert (
        find_weights("dino", "owner/name") == snapshot and find_weights("dino", "owner/name/dino.pth") == snapshot / "dino.pth"
    )
    load_dino("owner/name")
    with pytest.raises(ConfigError, match=r"^dino: got the hub id 'owner/name/other.pth', where there is no other.pth$"):
        find_weights("dino", "owner/name/other.pth")
    (snapshot / "dino.pth").unlink()
    with pytest.raises(ConfigError, match=r"where there is no \*.safetensors or \*.bin or \*.pth$"):
        find_weights("dino", "owner/name")


def test_a_local_path_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_weights("dino", "owner/name") == Path("owner/name")


def halved(path: Path, folder: Path, *, nan: bool) -> str:
    """Write every other tensor of a file, or all with one that is not finite."""
    tensors = read_tensors("x", path)
    names = sorted(tensors)
    if nan:
        tensors[names[0]] = torch.full_like(tensors[names[0]], math.nan)
    torch.save(tensors if nan else {name: tensors[name] for name in names[::2]}, folder / "half.pth")
    return str(folder / "half.pth")


def test_networks_that_are_not_whole_or_not_finite_are_refused(
    dino_files: dict[str, Path], lpips_files: tuple[Path, Path], tmp_path: Path
) -> None:
    network, heads = lpips_files
    missing = r"which does not load: \d+ of \d+ tensors are missing \(\S+, \S+, \S+, and \d+ more\)"
    infinite = r"where 1 of \d+ tensors hold NaN or infinity in float32"
    with pytest.raises(WrongWeights, match=f"^dino: got .*({missing}|is no DINO ViT-B/8: '.*' is missing)"):
        load_dino(halved(dino_files["pth"], tmp_path, nan=False))
    with pytest.raises(WrongWeights, match=f"^dino: got .*{infinite}"):
        load_dino(halved(dino_files["pth"], tmp_path, nan=True))
    with pytest.raises(WrongWeights, match=f"^lpips: got .*{missing}"):
        load_lpips(halved(network, tmp_path, nan=False), str(heads))
    tensors = {key: value for key, value in read_tensors("x", network).items() if key.startswith("features.")}
    torch.save(tensors, tmp_path / "features.pth")
    with pytest.raises(WrongWeights, match=f"^lpips: got .*{infinite}"):
        load_lpips(halved(tmp_path / "features.pth", tmp_path, nan=True), str(heads))
    with pytest.raises(WrongWeights, match=r"^lpips_heads: got .* with heads of \[64, 256, 384, 512\] channels"):
        load_lpips(str(network), halved(heads, tmp_path, nan=False))
    with pytest.raises(WrongWeights, match="^lpips_heads: got .*where 1 of 7 tensors hold NaN"):
        load_lpips(str(network), halved(heads, tmp_path, nan=True))


def test_a_layer_of_dino_without_its_bias_is_named(dino_files: dict[str, Path], tmp_path: Path) -> None:
    tensors = read_tensors("x", dino_files["pth"])
    del tensors["blocks.1.attn.qkv.bias"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(WrongWeights, match=r"^dino: got .* 1 of \d+ tensors are missing \(blocks.1.attn.qkv.bias\)"):
        load_dino(str(tmp_path / "part.pth"))


def test_wrong_weights_end_a_scoring_while_absent_ones_cost_their_metric(
    lpips_files: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = halved(lpips_files[0], tmp_path, nan=False)
    with pytest.raises(WrongWeights, match="^lpips: got "):
        MetricSuite(("lpips",), lpips=broken, lpips_heads=str(lpips_files[1]))
    assert "lpips_whole" in MetricSuite(("lpips",), lpips=str(tmp_path / "none.pth")).absent
