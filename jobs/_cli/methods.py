"""A command line with several methods: `method=[vimaedit, p2p thresholds.edit=0.3]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jobs._cli.options import CommandLine, load_config
from pipelines.evaluate.config import EvaluateConfig


def read_methods(line: CommandLine, required: Sequence[str]) -> tuple[list[EvaluateConfig], str]:
    """Read the settings of every method on a command line, and which of them the others are compared with.

    Every method has published values of its own for options that are not given, so each is read by itself.

    Raises: ConfigError as `load_config`.
    """
    values = dict(line.values)
    if values.get("method", "").startswith("["):
        values["methods"] = values.pop("method")
    line = dataclasses.replace(line, values=values)
    config = load_config(EvaluateConfig, line, required)
    alone = {"methods": "[]", "against": ""}
    own = [{**values, **alone, "method": each.method, "label": each.name, **each.options} for each in config.variants]
    return [load_config(EvaluateConfig, dataclasses.replace(line, values=each), required) for each in own], config.against
