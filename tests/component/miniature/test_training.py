"""Training of the miniature: what the stages are made of. The whole job runs in `tests/pipeline/jobs/test_train_miniature.py`."""

import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.bare import bare_environment
from tests.numbered import NumberDraw
from tests.scene_splits import may_train_on
from vimaedit.errors import ConfigError
from vimaedit.miniature.family import LATENT_CHANNELS, new_autoencoder, new_clip, new_scheduler, new_text_encoder, new_unet
from vimaedit.miniature.training import loop
from vimaedit.miniature.training.adapter import adapt, adapter_weights
from vimaedit.miniature.training.checkpoints import begin, load_denoiser, load_weights, save_weights
from vimaedit.miniature.training.components import fit_components, read_components, set_encoder
from vimaedit.miniature.training.corrections import (
    EDITED_TOTAL,
    LEAST_WEIGHT,
    MOST_WEIGHT,
    PairDraw,
    encode_corrections,
    mix,
    training_correction,
    validation_correction,
)
from vimaedit.miniature.training.data import (
    draw_ahead,
    load_tokenizer,
    render_batch,
    reuse,
    to_pixels,
    tokenize,
    training_edit,
    training_scene,
    validation_scene,
)
from vimaedit.miniature.training.denoiser import (
    Denoiser,
    DenoiserStage,
    add_noise,
    level_weights,
    spread_timesteps,
    velocity_to,
)
from vimaedit.miniature.training.loop import Budget, Replica, train
from vimaedit.miniature.training.options import STAGES, TrainConfig, parse_options
from vimaedit.miniature.training.stages import SHARES, plan, train_family
from vimaedit.models.files import SHIPPED
from vimaedit.scenes.edits import CATEGORIES as EDIT_CATEGORIES
from vimaedit.scenes.scenes import SPLIT_SEEDS


@pytest.fixture(scope="module")
def pixels():
    return to_pixels(render_batch([training_scene("components", n)[0] for n in range(120)]))


@pytest.fixture(scope="module")
def components(pixels):
    return fit_components(pixels)


def test_the_encoder_computes_the_components(pixels, components):
    autoencoder = new_autoencoder()
    set_encoder(autoencoder, components)
    with torch.inference_mode():
        posterior = autoencoder.encode(pixels[:5]).latent_dist
    wanted = components.encode(pixels[:5])
    assert wanted.shape == (5, LATENT_CHANNELS, 16, 16)
    assert (posterior.mode() - wanted).abs().max() < 5e-3
    assert posterior.std.max() < 3e-3


def test_an_encoder_tells_its_components(pixels, components):
    autoencoder = new_autoencoder()
    set_encoder(autoencoder, components)
    again = read_components(autoencoder.state_dict())
    for name, value in vars(components).items():
        assert torch.equal(getattr(again, name), value), name


def test_latents_have_unit_variance_and_keep_the_picture(pixels, components):
    latents = components.encode(pixels)
    assert abs(latents.std() - 1) < 0.05
    # The best picture that a linear decoder could make of them.
    flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
    design = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
    error = design @ torch.linalg.lstsq(design, patches).solution - patches
    assert -10 * (error / 2).square().mean().log10() > 31


def test_components_do_not_depend_on_the_order_of_pictures(pixels, components):
    again = fit_components(pixels.flip(0))
    assert torch.allclose(again.encode(pixels[:3]), components.encode(pixels[:3]), atol=1e-2)


def test_no_two_stages_see_the_same_scenes():
    texts = [training_scene(stage, n)[1] + str(training_scene(stage, n)[0]) for stage in STAGES for n in range(5)]
    assert len(set(texts)) == len(texts)


def test_training_never_sees_what_is_kept_for_the_other_splits():
    assert all(may_train_on(training_scene("denoiser", n)[0]) for n in range(300))
    for n in range(100):
        edit = training_edit("clip", n)
        assert may_train_on(edit.source) and may_train_on(edit.target)
    assert not all(may_train_on(validation_scene(n)[0]) for n in range(100))
    assert len(SPLIT_SEEDS) == 3


def test_captions_fit_the_text_encoder():
    tokenizer = load_tokenizer()
    ids = tokenize(tokenizer, [training_scene("denoiser", n)[1] for n in range(500)])
    # Start and end of text stand around every caption: none was cut.
    assert ids.shape[1] == new_text_encoder().config.max_position_embeddings == tokenizer.model_max_length
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    assert (ids[:, -2] == tokenizer.eos_token_id).all()


def test_an_adapter_starts_as_the_text_and_alone_learns():
    unet = adapt(new_unet())
    names = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert names and all("_ip." in name or name.startswith("encoder_hid_proj") for name in names)
    for name, processor in unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            assert torch.equal(processor.to_k_ip[0].weight, attention.to_k.weight)


def test_an_adapters_file_gives_the_same_network(tmp_path):
    from safetensors.torch import load_file, save_file

    plain = new_unet()
    weights = plain.state_dict()
    trained = adapt(plain)
    with torch.no_grad():
        for parameter in trained.encoder_hid_proj.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file(
        {name: value.detach().contiguous() for name, value in adapter_weights(trained).items()}, tmp_path / "a.safetensors"
    )
    loaded = load_file(tmp_path / "a.safetensors")
    again = new_unet()
    again.load_state_dict(weights)
    adapt(again, loaded)
    noisy, context, image = torch.randn(2, LATENT_CHANNELS, 16, 16), torch.randn(2, 48, 128), torch.randn(2, 1, 64)
    with torch.inference_mode():
        one, two = (
            unet(noisy, 500, context, added_cond_kwargs={"image_embeds": [image]}, return_dict=False)[0]
            for unet in (trained, again)
        )
    assert torch.equal(one, two)


def test_timesteps_cover_all_levels():
    torch.manual_seed(0)
    drawn = torch.stack([spread_timesteps(20, torch.device("cpu")) for _ in range(500)])
    assert drawn.min() >= 0 and drawn.max() <= 999
    # One from each twentieth of the distribution: no batch lies on one side of its middle, at 1000 / (1 + e^-0.5).
    assert (((drawn > 622).sum(dim=1) - 10).abs() <= 1).all()
    between = ((drawn >= 500) & (drawn < 900)).float().mean()
    assert abs(between - 0.583) < 0.02
    assert (drawn < 100).float().mean() > 0.005
    assert len({tuple(each) for each in drawn.argsort(dim=1).tolist()}) > 400  # in random order


def test_levels_of_much_noise_weigh_one():
    alphas = new_scheduler().alphas_cumprod
    weights = level_weights(alphas[[10, 999]])
    assert weights[1] == 1 and 0 < weights[0] < 1
    assert abs(weights[0] / (1 - alphas[10]) - 6) < 1e-3  # SNR + 1 is 1 / (1 - a)
    assert alphas[-1] < 0.02**2  # the last level holds next to nothing of the picture


def test_noise_is_added_by_the_cumulative_alpha():
    noisy = add_noise(torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 7.0), torch.tensor([0.36]))
    assert abs(float(noisy) - (0.6 * 3 + 0.8 * 7)) < 1e-6


def test_the_velocity_to_a_picture_is_the_one_whose_clean_picture_it_is():
    clean, other, noise = torch.randn(3, 2, 4, 3, 3).unbind()
    alphas = torch.tensor([0.9, 0.1])
    noisy = add_noise(clean, noise, alphas)
    signal, spread = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    assert torch.allclose(velocity_to(noisy, clean, alphas), signal * noise - spread * clean, atol=1e-5)
    assert torch.allclose(signal * noisy - spread * velocity_to(noisy, other, alphas), other, atol=1e-5)


def test_corrections_are_edits_of_the_training_split():
    edits = [training_correction("denoiser", n) for n in range(96)]
    for each in edits:
        assert may_train_on(each.source) and may_train_on(each.target)
    assert {each.category for each in edits} == set(EDIT_CATEGORIES[1:])
    assert not all(may_train_on(validation_correction(n).target) for n in range(100))


def test_the_errors_of_corrections_weigh_more_where_they_differ(components):
    corrections = [training_correction("denoiser", n) for n in range(20)]
    seen, wanted, weights = encode_corrections(components, corrections)
    assert seen.shape == wanted.shape == (20, LATENT_CHANNELS, 16, 16) and weights.shape == (20, 1, 16, 16)
    differ = (seen - wanted).abs().amax(dim=1, keepdim=True) > 1e-4
    assert differ.flatten(1).any(dim=1).all() and torch.equal(differ, weights > 1)
    counts = differ.sum(dim=(1, 2, 3))
    wanted_weights = (EDITED_TOTAL / counts).clamp(LEAST_WEIGHT, MOST_WEIGHT)
    assert torch.allclose(weights.amax(dim=(1, 2, 3)), wanted_weights) and len(wanted_weights.unique()) > 5


def test_corrections_show_the_picture_before_at_high_noise_and_something_between_at_low():
    torch.manual_seed(0)
    before, after = torch.zeros(2, 2000, 1, 1, 1)
    after += 1
    for timestep, share_before in ((1000, 1.0), (700, 0.7), (100, 0.1)):
        seen = mix(before, after, torch.full((2000,), timestep))
        assert abs((seen == 0).float().mean() - share_before) < 0.04 and 0 <= seen.min() and seen.max() <= 1


def test_what_is_seen_differs_from_what_is_wanted_in_corrections_alone(components):
    torch.manual_seed(0)
    draw = PairDraw("denoiser", components, batch=20, corrections=0.6)
    stage = DenoiserStage(Denoiser(), draw, torch.device("cpu"), torch.float32)
    asked = []
    stage._errors = lambda denoiser, seen, wanted, *rest: asked.append((seen, wanted)) or torch.zeros(len(seen))
    stage.loss(*(torch.from_numpy(each) for each in draw(0)))
    ((seen, wanted),) = asked
    differ = (seen != wanted).flatten(1).any(dim=1)
    assert 0 < differ[:12].sum() and not differ[12:].any()


def test_corrections_are_numbered_on_so_that_their_categories_come_in_turn(components):
    before, *_ = PairDraw("denoiser", components, batch=24, corrections=1 / 3)(24)
    wanted = components.encode(to_pixels(render_batch([training_correction("denoiser", 8 + n).source for n in range(8)])))
    assert torch.allclose(torch.from_numpy(before).float(), wanted, atol=5e-3)


def test_the_family_has_the_stated_sizes():
    sizes = [sum(p.numel() for p in network.parameters()) for network in (new_unet(), new_text_encoder(), new_clip())]
    assert 3.3e6 < sizes[0] < 3.5e6 and sizes[1] < 0.8e6 and sizes[2] < 0.8e6


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))


class SlopeStage:
    """Fits a line of slope 3 from points that follow from the step; `seen` holds the scenes asked for."""

    name = "slope"
    batch = 2

    def __init__(self) -> None:
        self.trained = Slope()
        self.draw = NumberDraw()
        self.seen: list[int] = []
        self.drawn: list[float] = []

    def loss(self, first: torch.Tensor) -> torch.Tensor:
        self.seen.append(int(first))
        self.drawn.append(float(torch.rand(())))
        x = 1.0 + first % 5
        return ((self.trained.slope - 3) * x).square().mean()

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        return {"slope": float(trained.slope)}

    def weights(self, trained: nn.Module) -> dict[str, torch.Tensor]:
        return trained.state_dict()


@pytest.fixture
def clock(monkeypatch):
    """Let every reading of the loop's clock be three milliseconds after the one before, however busy the machine is."""
    readings = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 0.003 * next(readings)))


def numbers(start: int, count: int, stride: int) -> list[int]:
    return list(range(start, start + count * stride, stride))


def test_training_learns_goes_on_and_keeps_a_curve(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(loop, "LOG_EVERY_S", 0.2)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.2)
    first = SlopeStage()
    averaged = train(first, Budget(minutes=0.03, learning_rate=0.05, average=0.9), tmp_path, seed=1)
    assert abs(float(averaged.slope) - 3) < 0.2
    assert first.seen == numbers(0, len(first.seen), 2)
    assert torch.equal(load_weights(tmp_path, "slope")["slope"], averaged.slope.half().float())
    finished = SlopeStage()
    train(finished, Budget(minutes=0.03, learning_rate=0.05, average=0.9), tmp_path, seed=1)
    assert finished.seen == []  # its budget is spent
    more = SlopeStage()
    train(more, Budget(minutes=0.04, learning_rate=0.05, average=0.9), tmp_path, seed=1)
    assert more.seen == numbers(first.seen[-1] + 2, len(more.seen), 2)
    lines = [json.loads(line) for line in (tmp_path / "slope.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == len(first.seen) + len(more.seen)
    assert lines[-1]["samples"] == 2 * steps[-1] and lines[-1]["learning_rate"] == 0.05
    # What a step draws follows from the seed and the step, wherever training began.
    again = SlopeStage()
    train(again, Budget(minutes=0.005, learning_rate=0.05), tmp_path / "other", seed=1)
    assert again.drawn[:3] == first.drawn[:3]
    assert len(set(first.drawn[:50])) == 50


def test_the_last_step_is_kept_where_the_last_line_was_just_written(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(loop, "LOG_EVERY_S", 0.0)  # a line after every step
    train(SlopeStage(), Budget(minutes=0.001, learning_rate=0.05), tmp_path, seed=1)
    lines = [json.loads(line) for line in (tmp_path / "slope.jsonl").read_text().splitlines()]
    saved = torch.load(tmp_path / "slope.pt", weights_only=True)
    assert saved["progress"]["step"] == lines[-1]["step"] > 5
    assert load_weights(tmp_path, "slope").keys() == {"slope"}


def test_replicas_move_to_their_mean_and_draw_batches_of_their_own(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(loop, "MEET_EVERY_STEPS", 1)
    first, second = SlopeStage(), SlopeStage()
    two = Replica(index=1, count=2)
    train(second, Budget(minutes=0.01, learning_rate=0.05), tmp_path, seed=1, replica=two)
    assert second.seen[:3] == [2, 6, 10]
    assert second.trained.slope.item() > 0.01
    left = torch.load(tmp_path / "slope-1.weights", weights_only=True)["slope"]
    monkeypatch.setattr(loop, "MEET_EVERY_STEPS", 10**9)  # the first one then meets once, below
    train(first, Budget(minutes=0.0001, learning_rate=1e-9), tmp_path, seed=1, replica=Replica(index=0, count=2))
    assert first.seen[0] == 0 and abs(first.trained.slope.item()) < 1e-3
    seen: dict = {}
    loop._meet(first.trained, tmp_path, "slope", Replica(index=0, count=2), seen)
    assert abs(first.trained.slope.item() - left.item() / 2) < 1e-3
    before = first.trained.slope.item()
    loop._meet(first.trained, tmp_path, "slope", Replica(index=0, count=2), seen)
    assert first.trained.slope.item() == before  # what was met once does not pull again
    assert sorted(path.name for path in tmp_path.glob("slope*.pt")) == ["slope-1.pt", "slope.pt"]
    assert load_weights(tmp_path, "slope").keys() == {"slope"}


def test_one_replica_goes_on_as_two_and_two_as_one(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(loop, "MEET_EVERY_STEPS", 10**9)
    alone = SlopeStage()
    train(alone, Budget(minutes=0.005, learning_rate=0.05), tmp_path, seed=1)
    both = [SlopeStage(), SlopeStage()]
    for index in (1, 0):  # the second joins what the first left
        train(both[index], Budget(minutes=0.01, learning_rate=1e-6), tmp_path, seed=1, replica=Replica(index=index, count=2))
    drawn = [number for stage in (alone, *both) for number in stage.seen]
    assert len(set(drawn)) == len(drawn)  # nothing is seen twice
    assert min(both[0].seen + both[1].seen) > alone.seen[-1]
    assert abs(both[1].trained.slope.item() - alone.trained.slope.item()) < 0.01
    last = SlopeStage()
    train(last, Budget(minutes=0.015, learning_rate=1e-6), tmp_path, seed=1)
    assert last.seen[0] > both[0].seen[-1]


def test_processes_draw_ahead_what_one_would_draw():
    drawn = draw_ahead(NumberDraw(), 6, 4, workers=2)
    assert [(number, int(batch[0][0])) for number, batch in (next(drawn) for _ in range(5))] == [
        (number, number) for number in (6, 10, 14, 18, 22)
    ]


def test_batches_are_used_again_among_the_latest():
    drawn = reuse(draw_ahead(NumberDraw(), 0, 2, workers=0), 3)
    seen = [next(drawn)[0] for _ in range(600)]
    assert seen[::3] == numbers(0, 200, 2)
    later = [(new, again) for index, new in enumerate(seen[::3]) for again in seen[3 * index + 1 : 3 * index + 3]]
    assert all(0 <= new - again < 2 * 64 for new, again in later) and len({new - again for new, again in later}) > 30


def test_every_stage_gets_its_share_of_the_minutes():
    for replicas in (1, 2):
        lanes = [lane for round_ in plan("all", 100.0, replicas) for lane in round_]
        tasks = [task for lane in lanes for task in lane]
        assert {task.stage for task in tasks} == set(SHARES)
        # Rounds follow each other; what runs side by side in one takes equally long.
        spent = [{round(sum(task.minutes for task in lane), 6) for lane in round_} for round_ in plan("all", 100.0, replicas)]
        assert all(len(each) == 1 for each in spent) and abs(sum(sum(each) for each in spent) - 100) < 1e-5
    (lanes,) = plan("decoder", 7.0, 2)
    assert [(task.stage, task.minutes, task.replica) for (task,) in lanes] == [
        ("decoder", 7.0, Replica(index=n, count=2)) for n in range(2)
    ]
    assert plan("bundle", 7.0, 2) == []


def test_weights_of_others_begin_a_training_and_end_in_a_bundle(tmp_path):
    """A folder with a UNet and a text encoder alone takes everything else from the built-in family, which comes back whole."""
    from safetensors.torch import load_file, save_file

    shipped = SHIPPED / "miniature"
    start = tmp_path / "start"
    start.mkdir()
    unet = load_file(shipped / "sd/unet/diffusion_pytorch_model.safetensors")
    unet["conv_out.bias"] = unet["conv_out.bias"] + 1
    save_file(unet, start / "unet.safetensors")
    save_file(load_file(shipped / "sd/text_encoder/model.safetensors"), start / "text_encoder.safetensors")
    line = train_family(TrainConfig(output=str(tmp_path / "family"), start=str(start), stage="bundle"))
    assert line == f"bundle: {tmp_path}/family/miniature"
    for path in sorted(shipped.rglob("*.safetensors")):
        made, wanted = load_file(tmp_path / "family/miniature" / path.relative_to(shipped)), load_file(path)
        assert made.keys() == wanted.keys()
        for name, value in wanted.items():
            moved = "unet" in str(path) and name == "conv_out.bias"
            assert torch.allclose(made[name].float(), value.float() + moved, atol=1e-3), (path, name)
    name = "scoring_clip/model.safetensors"
    made, wanted = load_file(tmp_path / "family" / name), load_file(SHIPPED / name)
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)


def test_a_wider_unet_is_told_from_its_weights(tmp_path):
    wide = Denoiser((64, 96, 128))
    save_weights(tmp_path, "denoiser", wide.state_dict())
    loaded = load_denoiser(tmp_path)
    assert tuple(loaded.unet.config.block_out_channels) == (64, 96, 128)
    assert torch.equal(loaded.unet.conv_in.weight, wide.unet.conv_in.weight.half().float())


def test_a_folder_that_holds_no_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="start: got .*allowed: a bundle's folder"):
        begin(tmp_path, str(tmp_path))
    with pytest.raises(ConfigError, match="holds no weights of denoiser"):
        load_denoiser(tmp_path)
    (tmp_path / "denoiser.pt").touch()
    with pytest.raises(ConfigError, match="an older version"):
        begin(tmp_path, "")


def test_options_are_words_of_key_and_value():
    words = ["output=a=b", "minutes=2", "batch=512", "learning_rate=", "channels=64,96, 128", "seed=3"]
    config = parse_options(TrainConfig, words)
    assert (config.output, config.minutes, config.batch, config.learning_rate) == ("a=b", 2.0, 512, None)
    assert (config.channels, config.seed) == ([64, 96, 128], 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["output=a", "minute=2"], "minute: got an unknown option; allowed: output=..."),
        (["output=a", "--help"], "--help: got an unknown option"),
        (["output=a", "seed=1", "seed=1"], "seed: got it twice"),
        (["output=a", "seed=1.5"], "seed: got '1.5'; allowed: int"),
        (["output=a", "stage=unet"], "stage: got 'unet'; allowed: all, components, decoder"),
        (["output=a", "channels=48,96"], "channels: got [48, 96]; allowed: three multiples of 16"),
        (["minutes=1"], "output: got ''; allowed: a local folder"),
    ],
)
def test_wrong_options_are_refused(words, said):
    with pytest.raises(ConfigError) as error:
        parse_options(TrainConfig, words)
    assert said in str(error.value)


def test_training_needs_no_more_than_a_bare_machine_has(tmp_path, repository):
    """It starts without Ray, Arrow and OmegaConf, and says what it takes."""
    command = [sys.executable, "-S", "-m", "vimaedit.miniature.training", "minuets=1"]
    environment = bare_environment(tmp_path, repository)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "minuets: got an unknown option; allowed: output=... stage=..." in done.stderr
