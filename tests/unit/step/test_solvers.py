"""Grids and step rules against the formulas, written out once more in float64 numpy."""

import math

import numpy as np
import pytest
import torch

from vimaedit.errors import ConfigError
from vimaedit.recipes import method_config
from vimaedit.step.solvers import (
    Level,
    add_noise,
    build_schedule,
    ddim_schedule,
    ddim_step,
    dpmsolver_schedule,
    dpmsolver_step,
    flow_schedule,
    method_schedule,
    move,
    posterior_variance,
    predict_x0,
    spread_step,
    trailing_schedule,
)

LEVELS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SHAPE = (2, 3, 4, 5, 7)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_ddim_grid_of_fifty_steps() -> None:
    schedule = ddim_schedule(LEVELS, 50)
    assert schedule.timesteps[:3] == (981, 961, 941) and schedule.timesteps[-1] == 1
    assert schedule.levels[0].signal == LEVELS[981] and schedule.next_levels[0].signal == LEVELS[961]
    assert schedule.next_levels[-1] == Level(1.0, 0.0, 1.0, 0.0)


def test_ddim_grid_where_the_steps_do_not_divide() -> None:
    schedule = ddim_schedule(LEVELS, 7)
    assert schedule.timesteps == (853, 711, 569, 427, 285, 143, 1)
    assert schedule.next_levels[0].signal == LEVELS[853 - 142]


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 1000])
def test_a_trailing_grid_is_the_librarys(steps: int) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    schedule = trailing_schedule(LEVELS, steps)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist() and schedule.timesteps[0] == 999
    assert schedule.next_levels[:-1] == schedule.levels[1:] and schedule.next_levels[-1].sigma == 0


def test_spacing_reaches_the_grid_of_a_method() -> None:
    config = method_config("vimaedit", steps=4, spacing="trailing")
    assert method_schedule(config, LEVELS).timesteps == (999, 749, 499, 249)
    inverted = method_schedule(method_config("p2p", steps=4, spacing="trailing"), LEVELS)
    assert inverted.timesteps == (999, 749, 499, 249) and inverted.next_levels[-1].signal == LEVELS[0]
    for options in ({"method": "infedit"}, {"method": "vimaedit", "solver": "dpmsolver++"}):
        with pytest.raises(ConfigError, match="^spacing: got trailing with method=.*; allowed: leading, or solver=ddim with"):
            method_config(spacing="trailing", **options)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 501, 999])
def test_any_number_of_steps(solver: str, steps: int) -> None:
    schedule = build_schedule(solver, LEVELS, steps)
    assert len(schedule) == steps and all(b <= a for a, b in zip(schedule.timesteps, schedule.timesteps[1:], strict=False))
    assert all(0 < a.signal < b.signal <= 1 for a, b in zip(schedule.levels, schedule.next_levels, strict=True))
    assert schedule.next_levels[:-1] == schedule.levels[1:] and schedule.next_levels[-1].sigma == 0


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
def test_too_many_steps_name_the_limit(solver: str) -> None:
    with pytest.raises(ConfigError, match=f"steps: got 1000 with solver={solver.replace('+', '[+]')}; allowed: 1 to 999"):
        build_schedule(solver, LEVELS, 1000)


def test_dpmsolver_grid() -> None:
    schedule = dpmsolver_schedule(LEVELS, 10)
    assert schedule.timesteps == (999, 899, 799, 699, 599, 500, 400, 300, 200, 100)
    assert schedule.next_levels == (*schedule.levels[1:], Level.of_noise(1.0))


@pytest.mark.parametrize("i", [0, 5, 9])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_ddim_step_follows_the_formula(i: int, eta: float) -> None:
    schedule = ddim_schedule(LEVELS, 10)
    x, x0, noise = draw(1), draw(2), draw(3)
    mask = (draw(4, (3, 1, 5, 7)) > 0).float()
    own = ddim_step(x, x0, schedule, i, mask, noise, eta).double().numpy()
    a, b = schedule.levels[i].signal, schedule.next_levels[i].signal
    sigma = eta * mask.double().numpy() * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
    direction = np.sqrt((1 - b - sigma**2) / (1 - a))
    expected = (math.sqrt(b) - math.sqrt(a) * direction) * x0.numpy() + direction * x.numpy() + sigma * noise.numpy()
    np.testing.assert_allclose(own, expected, atol=2e-6)


def test_zero_variance_keeps_the_source_on_its_closed_form() -> None:
    """With no variance the source stays sqrt(a) x0 + sqrt(1 - a) n at every level."""
    schedule = ddim_schedule(LEVELS, 11)
    x0, noise = draw(1), draw(2)
    x = add_noise(x0, noise, schedule.levels[0])
    for i in range(11):
        x = ddim_step(x, x0, schedule, i, torch.zeros(1), draw(9), eta=1.0)
        torch.testing.assert_close(x, add_noise(x0, noise, schedule.next_levels[i]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("level", [Level.of_noise(0.37), Level.of_flow(0.37), Level.of_flow(1.0)])
def test_predict_x0_inverts_add_noise(level: Level) -> None:
    x0, noise = draw(1), draw(2)
    predicted = noise - x0 if level.is_flow else noise
    torch.testing.assert_close(predict_x0(add_noise(x0, noise, level), predicted, level), x0, atol=2e-6, rtol=0)


def test_noise_levels_are_what_they_were_to_the_last_bit() -> None:
    for steps in (1, 4, 7, 10, 50, 200, 333, 999):
        schedule = ddim_schedule(LEVELS, steps)
        for i, (level, after) in enumerate(zip(schedule.levels, schedule.next_levels, strict=True)):
            a, b = level.signal, after.signal
            assert (level.alpha, level.sigma, level.variance) == (math.sqrt(a), math.sqrt(1 - a), 1 - a)
            assert posterior_variance(schedule, i, 0.7) == 0.7**2 * (1 - b) / (1 - a) * (1 - a / b)
            assert level.log_snr == 0.5 * math.log(a / (1 - a))


FLOW = flow_schedule((1000.0, 750.0, 300.0), (1.0, 0.75, 0.3, 0.0))


@pytest.mark.parametrize("i", [0, 1, 2])
def test_one_step_is_eulers_on_a_flow(i: int) -> None:
    x, velocity = draw(1), draw(2)
    level, after = FLOW.levels[i], FLOW.next_levels[i]
    expected = x.double() + (after.sigma - level.sigma) * velocity.double()
    torch.testing.assert_close(move(x, velocity, level, after).double(), expected, atol=1e-6, rtol=0)
    own = spread_step(x, predict_x0(x, velocity, level), FLOW, i, torch.zeros(1), draw(3))
    torch.testing.assert_close(own.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("i", [0, 1, 2])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_a_flow_takes_variance_and_stays_at_its_levels(i: int, eta: float) -> None:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) n + s n': with unit noise its variance around alpha' x0 is sigma'^2."""
    level, after = FLOW.levels[i], FLOW.next_levels[i]
    s2 = posterior_variance(FLOW, i, eta)
    assert s2 == pytest.approx(eta**2 * after.sigma**2 * (1 - (level.alpha * after.sigma / (after.alpha * level.sigma)) ** 2))
    assert 0 <= s2 <= after.sigma**2 + 1e-12
    x0, noise, fresh = draw(1), draw(2), draw(3)
    own = ddim_step(add_noise(x0, noise, level), x0, FLOW, i, torch.ones(1), fresh, eta)
    expected = after.alpha * x0 + math.sqrt(max(after.sigma**2 - s2, 0)) * noise + math.sqrt(s2) * fresh
    torch.testing.assert_close(own, expected, atol=3e-6, rtol=0)


def test_the_second_order_step_starts_from_pure_noise() -> None:
    x, x0, before, noise = draw(1), draw(2), draw(3), draw(4)
    nowhere = torch.zeros(1)
    first = dpmsolver_step(x, x0, None, FLOW, 0, nowhere, noise)
    torch.testing.assert_close(first, FLOW.next_levels[0].sigma * x + FLOW.next_levels[0].alpha * x0)
    assert torch.equal(
        dpmsolver_step(x, x0, before, FLOW, 1, nowhere, noise), dpmsolver_step(x, x0, None, FLOW, 1, nowhere, noise)
    )


@pytest.mark.parametrize("i", [0, 4, 9])
def test_dpmsolver_step_follows_the_formulas(i: int) -> None:
    schedule = dpmsolver_schedule(LEVELS, 10)
    x, x0, previous, noise = (draw(seed).double().numpy() for seed in (1, 2, 3, 4))
    mask = draw(5, (3, 1, 5, 7)) > 0
    history = None if i == 0 else torch.from_numpy(previous).float()
    own = dpmsolver_step(
        torch.from_numpy(x).float(),
        torch.from_numpy(x0).float(),
        history,
        schedule,
        i,
        mask.float(),
        torch.from_numpy(noise).float(),
    )
    a, b = schedule.levels[i].signal, schedule.next_levels[i].signal
    if i == 9:
        expected = x0
    else:

        def half_log_snr(alpha: float) -> float:
            return math.log(math.sqrt(alpha) / math.sqrt(1 - alpha))

        h = half_log_snr(b) - half_log_snr(a)
        slope = np.zeros_like(x0)
        if i > 0:
            r = (half_log_snr(a) - half_log_snr(schedule.levels[i - 1].signal)) / h
            slope = (x0 - previous) / r
        s, s_next, root = math.sqrt(1 - a), math.sqrt(1 - b), math.sqrt(b)
        ode = s_next / s * x - root * (math.exp(-h) - 1) * (x0 + 0.5 * slope)
        decay = 1 - math.exp(-2 * h)
        sde = s_next / s * math.exp(-h) * x + root * decay * (x0 + 0.5 * slope) + s_next * math.sqrt(decay) * noise
        expected = np.where(mask.numpy(), sde, ode)
    np.testing.assert_allclose(own.double().numpy(), expected, atol=5e-6)


def test_first_order_sde_equals_ddim_with_full_variance() -> None:
    """The SDE update without history is DDIM with eta = 1: two formulas, one step."""
    schedule = dpmsolver_schedule(LEVELS, 10)
    x, x0, noise, everywhere = draw(1), draw(2), draw(3), torch.ones(1)
    sde = dpmsolver_step(x, x0, None, schedule, 3, everywhere, noise)
    torch.testing.assert_close(sde, ddim_step(x, x0, schedule, 3, everywhere, noise, 1.0), atol=3e-6, rtol=0)
