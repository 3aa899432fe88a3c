"""The independent reference in `tests/reference` held to what must hold anyhow, and to the recorded runs of the released program.

The runs are recorded ones of the engine too, which `test_replay` holds to some of them always; the reference is held to them by
`make parity`. Each prints its largest errors (`pytest -s`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference.edit import EditInputs, Models, Recorded, Settings, build_context, load_models, run
from vimaedit.miniature.random_bundle import write_random_bundle

ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
LISTS = ("cases/cases.json", "baselines/cases_virtual.json")  # the latter for the method's ablations

START_TOLERANCE = 1e-5
MAP_TOLERANCE = 1e-5  # largest difference over largest value
LATENT_TOLERANCE = 5e-4
DECIDED_MARGIN = 1e-5  # a map value this near to its threshold may fall either way


def list_cases() -> list:
    """List the recorded runs of this method; one name without reference data, to be skipped."""
    paths = {}
    for path in LISTS:
        if (ORACLE / path).is_file():
            entries = json.loads((ORACLE / path).read_text())["cases"]
            paths |= {name: path for name, entry in entries.items() if entry.get("editor", "ViMAEdit") == "ViMAEdit"}
    return [pytest.param(path, name, id=name) for name, path in (paths or {"none": LISTS[0]}).items()]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread: products this small gain nothing from a second, and lose much where the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(oracle) -> Models:
    return load_models(oracle / "models")


def read_settings(parameters: dict) -> Settings:
    edit, critical = parameters["lb_th"]
    return Settings(
        num_steps=parameters["num_inference_steps"],
        solver=parameters["scheduler"],
        variance="uniform" if critical < 0 else "adaptive",
        eta=parameters.get("eta", 1.0),
        edit_threshold=edit,
        critical_threshold=critical,
        self_window=parameters["self_replace_steps"],
        text_window=parameters["cross_text_replace_steps"],
        image_window=parameters["cross_image_replace_steps"],
        grounding_rounds=parameters["lb_order"],
        grounding_decay=parameters["gamma"],
        grounding_start=parameters["start_blend"],
        image_strength=parameters["ip_adapter_scale"],
        source_guidance=parameters["source_guidance_scale"],
        target_guidance=parameters["target_guidance_scale"],
    )


def read_inputs(parameters: dict, arrays: dict[str, np.ndarray], models_folder: Path) -> EditInputs:
    def tensor(name: str) -> torch.Tensor | None:
        return torch.from_numpy(arrays[name]) if name in arrays else None

    texts = tensor("text_context")
    if texts is None:
        texts = encode_texts(torch.from_numpy(arrays["input_ids"]), models_folder)
    x_0 = torch.from_numpy(arrays["x_0"][0])
    step_noise = tensor("variance_noise")
    if step_noise is None:
        step_noise = torch.zeros(parameters["num_inference_steps"], *x_0.shape)
    equalizer = tensor("equalizer")
    return EditInputs(
        settings=read_settings(parameters),
        x_0=x_0,
        init_noise=torch.from_numpy(arrays["init_noise"][0]),
        step_noise=step_noise,
        text_empty=texts[0],
        text_source=texts[2],
        text_target=texts[3],
        mapper=torch.from_numpy(arrays["mapper"]),
        mapper_alphas=tensor("mapper_alphas"),
        equalizer=None if equalizer is None else equalizer[0],
        image_source=tensor("image_embeds_source"),
        image_target=tensor("image_embeds_edit"),
        token_masks=tensor("blend_token_mask"),
    )


def encode_texts(input_ids: torch.Tensor, models_folder: Path) -> torch.Tensor:
    """Encode (empty, empty, source, target) where a case has no recorded text context."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(models_folder / "sd" / "tokenizer")
    empty = torch.tensor(tokenizer(["", ""], padding="max_length").input_ids)
    encoder = CLIPTextModel.from_pretrained(models_folder / "sd" / "text_encoder")
    with torch.no_grad():
        return encoder(torch.cat([empty, input_ids])).last_hidden_state


def first_undecided(own: Recorded, arrays: dict[str, np.ndarray]) -> tuple[int | None, int]:
    """Return the step from which a case cannot be judged, and how many mask pixels are different before it."""
    different = 0
    for i in np.flatnonzero(arrays.get("mask_defined", ())):  # not recorded where no words were given
        here = int((own.row_masks[i].numpy() != arrays["mask_th0"][i]).sum())
        here += int((own.critical_mask[i].numpy() != arrays["edit_mask_th1"][i]).sum())
        if here and np.nanmin(arrays["mask_margin"][i]) < DECIDED_MARGIN:
            return int(i), different
        different += here
    return None, different


def largest_error(own: torch.Tensor, recorded: np.ndarray) -> float:
    assert own.shape == recorded.shape
    return float(np.abs(own.numpy().astype(np.float64) - recorded).max())


def latent_errors(own: Recorded, arrays: dict[str, np.ndarray], decided: int) -> list[float]:
    """Return the largest error of every recorded step before `decided`, the last step's among them."""
    errors = []
    for branch, name in enumerate(("source", "target")):
        recorded = arrays.get(f"latents_{name}", np.empty(0))
        for n, step in enumerate(arrays[f"latents_{name}_steps"] if len(recorded) else ()):
            if step < decided:
                errors.append(largest_error(own.latents[step, branch], recorded[n]))
    if decided == len(own.timesteps):
        if "final_latents" in arrays:
            errors.append(largest_error(own.final_latents, arrays["final_latents"]))
        else:
            errors.append(largest_error(own.final_latents[1], arrays["final_latents_target"]))
    return errors


@pytest.mark.parity
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("path", "name"), list_cases())
def test_recorded_case(oracle, models, path, name):
    entry = json.loads((oracle / path).read_text())["cases"][name]
    with np.load((oracle / path).parent / entry["file"]) as file:
        arrays = {key: file[key] for key in file.files}
    inputs = read_inputs(entry["parameters"], arrays, oracle / "models")
    started = time.monotonic()
    own = run(models, inputs)
    seconds = time.monotonic() - started

    undecided, different = first_undecided(own, arrays)
    decided = len(own.timesteps) if undecided is None else undecided
    latents = max(latent_errors(own, arrays, decided), default=float("nan"))
    map_error = 0.0
    if own.map_sum is not None:
        recorded_maps = arrays["map_accum"][:decided]
        map_error = largest_error(own.map_sum[:decided], recorded_maps) / np.abs(recorded_maps).max()
    print(
        f"\n{name}: latents {latents:.1e}, maps {map_error:.1e}, {different} mask pixels different"
        + (f", undecided from step {undecided}" if undecided is not None else "")
        + f", {seconds:.0f} s"
    )

    assert own.timesteps == arrays["timesteps"].tolist()
    if "x_T" in arrays:
        assert largest_error(own.x_T[None], arrays["x_T"]) <= START_TOLERANCE
    if "ip_tokens" in arrays:
        context, num_image_tokens = build_context(models.adapter, inputs)
        assert largest_error(context[:, None, -num_image_tokens:], arrays["ip_tokens"]) <= START_TOLERANCE
    assert own.mask_exists.tolist() == arrays.get("mask_defined", np.zeros(len(own.timesteps), bool)).tolist()
    assert different == 0
    assert map_error <= MAP_TOLERANCE
    assert latents <= LATENT_TOLERANCE


@pytest.fixture(scope="module")
def random_models(tmp_path_factory) -> Models:
    folder = tmp_path_factory.mktemp("bundle")
    write_random_bundle(folder)
    return load_models(folder)


def random_inputs(settings: Settings, **changes: torch.Tensor | None) -> EditInputs:
    """Draw the inputs of an edit on oblong latents, with two words of each prompt as its words."""
    generator = torch.Generator().manual_seed(13)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    shape, length = (4, 12, 20), 11
    token_masks = torch.zeros(2, length)
    token_masks[0, 3:5] = token_masks[1, 3:5] = 1
    inputs = EditInputs(
        settings=settings,
        x_0=draw(*shape),
        init_noise=draw(*shape),
        step_noise=draw(settings.num_steps, *shape),
        text_empty=draw(length, 64),
        text_source=draw(length, 64),
        text_target=draw(length, 64),
        mapper=torch.arange(length),
        mapper_alphas=torch.ones(length),
        image_source=draw(48),
        image_target=draw(48),
        token_masks=token_masks,
    )
    return replace(inputs, **changes)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("variance", ["adaptive", "uniform", "zero"])
def test_source_returns_to_its_start_and_only_the_mask_changes(random_models, solver, variance):
    mask = torch.zeros(12, 20, dtype=torch.bool)
    mask[2:7, 3:14] = True
    settings = Settings(num_steps=5, solver=solver, variance=variance, text_side=0.5)
    inputs = random_inputs(settings, token_masks=None, given_mask=mask)
    own = run(random_models, inputs)
    assert torch.allclose(own.final_latents[0], inputs.x_0, atol=1e-5)
    changed = (own.latents[:, 1] != own.latents[:, 0]).any(dim=1)
    assert not changed[:, ~mask].any()
    assert changed[-1][mask].all()
    assert own.map_sum is None


def test_variance_acts_inside_its_region_alone(random_models):
    settings = Settings(num_steps=5, text_side=0.5)
    inputs = random_inputs(settings)
    runs = {
        kind: run(random_models, replace(inputs, settings=replace(settings, variance=kind)))
        for kind in ("adaptive", "uniform", "zero")
    }
    # Up to the first step with a mask, and in it outside the critical region, nothing tells `adaptive` from `zero`.
    own, zero, uniform = runs["adaptive"], runs["zero"], runs["uniform"]
    assert own.mask_exists.all()  # int(0.2 * 5) = 1: from the first step on
    critical = own.critical_mask[0]
    assert 0 < critical.sum() < critical.numel()
    assert torch.equal(own.latents[0, 0][:, ~critical], zero.latents[0, 0][:, ~critical])
    assert torch.equal(own.latents[0, 0][:, critical], uniform.latents[0, 0][:, critical])
    assert (own.latents[0, 0] != zero.latents[0, 0])[:, critical].all()
    assert (uniform.latents[0, 0] != zero.latents[0, 0]).all()


def test_equal_prompts_and_images_change_nothing(random_models):
    settings = Settings(num_steps=3, text_side=0.5, image_order="conventional", source_guidance=7.5)
    inputs = random_inputs(settings)
    own = run(random_models, replace(inputs, text_target=inputs.text_source, image_target=inputs.image_source))
    assert torch.allclose(own.latents[:, 1], own.latents[:, 0], atol=1e-4)


def test_words_without_attention_give_no_mask(random_models):
    settings = Settings(num_steps=3, text_side=0.5)
    inputs = random_inputs(settings, token_masks=torch.zeros(2, 11))
    own, none = run(random_models, inputs), run(random_models, replace(inputs, token_masks=None))
    assert not own.mask_exists.any() and not own.edit_mask.any()
    assert torch.equal(own.latents, none.latents)
