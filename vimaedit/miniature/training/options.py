"""What a training is told: one frozen dataclass, and how `key=value` words become one."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vimaedit.checks import check_choice, check_range, check_types
from vimaedit.errors import ConfigError

# In the order in which they are begun; what each stands on comes before it. Scenes of their own have all of them.
STAGES = ("components", "decoder", "clip", "scoring_clip", "denoiser", "ip_adapter")
WHOLE = "all"  # every stage, then the bundle
BUNDLE = "bundle"  # no training: the files made of the checkpoints as they are now
DTYPES = ("auto", "float32", "bfloat16", "float16")
AUTOMATIC = 0  # of counts that depend on the machine

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a training. Those that a stage has values of its own for are null."""

    output: str = ""  # local folder: gets miniature/, scoring_clip/ and checkpoints/, from which a second call goes on
    stage: str = WHOLE  # all, one stage alone for all the minutes (decoder, clip, ...), or bundle: write what there is
    minutes: float = 240.0  # of training in all; a larger number later goes on from where a smaller one ended
    start: str = ""  # folder of weights to begin with, a bundle or unet.safetensors and text_encoder.safetensors; none: drawn
    seed: int = 0  # of weights and noise
    device: str = "auto"  # auto, cpu, cuda
    dtype: str = "auto"  # of the networks' arithmetic: bfloat16 where that is fast, else float32; weights are kept in float32
    replicas: int = AUTOMATIC  # processes side by side; 0: two on a CPU of two cores or more, else one
    threads: int = AUTOMATIC  # of each replica on a CPU; 0: all cores shared out
    workers: int = AUTOMATIC  # processes of each replica that draw scenes ahead; 0: on a GPU one a core, on a CPU none
    batch: int | None = None  # scenes a step
    learning_rate: float | None = None  # the highest; it falls over the last 60 % of the minutes
    corrections: float | None = None  # share of a batch whose captions overrule what is seen
    uses: int = 1  # how often a batch of scenes is seen, each time with other noise
    channels: list[int] = field(default_factory=list)  # of the UNet's three sides, multiples of 16; none: 48, 96, 96

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("stage", self.stage, (WHOLE, *STAGES, BUNDLE))
        check_range("minutes", self.minutes, 0.1, 100_000)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("dtype", self.dtype, DTYPES)
        for name, most in (("replicas", 2), ("threads", 1024), ("workers", 1024)):
            check_range(name, getattr(self, name), AUTOMATIC, most)
        for name, low, high in (
            ("batch", 2, 2**16),
            ("learning_rate", 1e-9, 1.0),
            ("corrections", 0.0, 0.9),
        ):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low, high)
        check_range("uses", self.uses, 1, 100)
        if self.channels and (len(self.channels) != 3 or any(each < 16 or each % 16 for each in self.channels)):
            raise ConfigError(f"channels: got {self.channels}; allowed: three multiples of 16, as 48,96,96")
        if not self.output or "://" in self.output:
            raise ConfigError(f"output: got {self.output!r}; allowed: a local folder, since checkpoints are gone on from")


def parse_options(config_type: type[Config], words: Sequence[str]) -> Config:
    """Build a dataclass of options from `key=value` words; a list is `1,2,3`, nothing after the equals sign null.

    Raises: ConfigError for an unknown key, one given twice, a value of another type, or what the dataclass refuses.
    """
    hints = typing.get_type_hints(config_type)
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in hints:
            raise ConfigError(f"{key}: got an unknown option; allowed: {' '.join(f'{name}=...' for name in hints)}")
        if key in values:
            raise ConfigError(f"{key}: got it twice; allowed: once")
        try:
            values[key] = _read(text, hints[key])
        except ValueError as error:
            raise ConfigError(f"{key}: got {text!r}; allowed: {getattr(hints[key], '__name__', hints[key])}") from error
    return config_type(**values)


def _read(text: str, hint: Any) -> Any:
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    if isinstance(hint, types.UnionType):
        kind = next(each for each in typing.get_args(hint) if each is not types.NoneType)
        return None if text in ("", "null") else _read(text, kind)
    if typing.get_origin(hint) is list:
        kind = typing.get_args(hint)[0]
        return [_read(part.strip(), kind) for part in text.strip("[]").split(",") if part.strip()]
    return hint(text)
