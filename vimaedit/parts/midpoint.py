"""The midpoint rule on a flow, and the source's values handed on to the edit (FireFlow, arXiv 2412.07517; RF-Solver, arXiv 2411.04746).

From level a to b: v at a, v' at the time between and x + (b - a)/2 v, x <- x + (b - a) v'. FireFlow takes the v' of the step before
in place of v, so that a step has one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vimaedit.attention.control import ValueBank, plain_control
from vimaedit.config import EditConfig
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning
from vimaedit.step.solvers import Schedule, move

FIRST, MID = "first", "mid"
Ask = Callable[[Tensor, Tensor, ValueBank | None], Tensor]  # latents, timestep, values -> velocity


@dataclass(eq=False)
class Midpoint:
    """The rule's state over the steps of one run. `kept`: values of the layers by interval and call, of the intervals nearest the
    noise."""

    schedule: Schedule
    reuses: bool
    layers: frozenset[str]
    num_kept: int
    kept: dict[tuple[int, str], dict[str, Tensor]] = field(default_factory=dict)
    velocity: Tensor | None = None

    def between(self, x: Tensor, i: int, ask: Ask, *, up: bool = False) -> Tensor:
        """Return the velocity v' of interval i, from its noisy end down, or with `up` from the other end and keeping values."""
        level, after = self.schedule.levels[i], self.schedule.next_levels[i]
        start = (after if up else level).sigma
        if self.velocity is None or not self.reuses:
            self.velocity = ask(x, self._time(start, x), self._bank(i, FIRST, puts=not up))
        middle = (level.sigma + after.sigma) / 2
        midway = x + (middle - start) * self.velocity
        self.velocity = ask(midway, self._time(middle, x), self._bank(i, MID, puts=not up))
        return self.velocity

    def _time(self, sigma: float, x: Tensor) -> Tensor:
        return torch.tensor(sigma * self.schedule.timesteps[0] / self.schedule.levels[0].sigma, device=x.device)

    def _bank(self, i: int, call: str, *, puts: bool) -> ValueBank | None:
        if i >= self.num_kept or not self.layers or (puts and (i, call) not in self.kept):
            return None
        return ValueBank(self.layers, self.kept.setdefault((i, call), {}), puts)


def invert_midway(
    backbone: Backbone, x0: Tensor, conditioning: Conditioning, config: EditConfig, schedule: Schedule
) -> tuple[list[Tensor], Midpoint]:
    """Run the rule from the clean picture up; return the latents of all levels, noisiest first, and the rule with the values kept,
    ready for the way down."""
    options = config.midpoint
    layers = backbone.value_layers(options)
    rule = Midpoint(schedule, config.parts.midpoint == "reused", layers, options.steps)

    def ask(x: Tensor, timestep: Tensor, values: ValueBank | None) -> Tensor:
        control = replace(plain_control(torch.zeros(len(x), dtype=backbone.dtype, device=x.device)), values=values)
        return backbone.predict(x, timestep, conditioning, control).float()

    levels = [x0]
    for i in reversed(range(len(schedule))):
        velocity = rule.between(levels[0], i, ask, up=True)
        levels.insert(0, move(levels[0], velocity, schedule.next_levels[i], schedule.levels[i]))
    rule.velocity = None
    return levels, rule
