"""The errors this package raises on purpose; anything else that surfaces is a bug or infrastructure."""

from __future__ import annotations

SHOWN_CHARACTERS = 80


class VimaeditError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(VimaeditError):
    """A setting is wrong. Raised before any model work starts; the text says what is allowed."""


class WrongWeights(ConfigError):
    """Weights that are there, but are not what they should be: some missing, not finite, of something else."""


class RequestError(VimaeditError):
    """One record cannot be edited as asked. It becomes a row with status `rejected`; the run goes on.

    `code` is a short stable name (the row's `error_type`), `field` the input field concerned, `got` what stood there
    and `allowed` what may stand there.
    """

    def __init__(self, code: str, *, field: str, got: str, allowed: str) -> None:
        super().__init__(f"{field}: got {got}; allowed: {allowed}")
        self.code = code
        self.field = field
        self.got = got
        self.allowed = allowed

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_request_error, (self.code, self.field, self.got, self.allowed)


def _rebuild_request_error(code: str, field: str, got: str, allowed: str) -> RequestError:
    return RequestError(code, field=field, got=got, allowed=allowed)


def shown(value: object) -> str:
    """Show a value in an error's text, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
