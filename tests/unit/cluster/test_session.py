"""Joining a cluster that asks for a token, as processes that have none, or a wrong one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

JOIN = """
import sys
from pipelines.cluster.private import token_text
from pipelines.cluster.session import connect
from pipelines.options import Place
from vimaedit.errors import ConfigError
print(token_text())
try:
    connect(Place(ray_address=sys.argv[1] or None))
except ConfigError as error:
    print(error)
"""
PLACES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


@pytest.mark.parametrize(
    ("variables", "own", "text"),
    [
        ({}, False, f"there is no token here, which it may ask for: {PLACES}"),
        ({"RAY_AUTH_TOKEN_PATH": "/gone"}, True, "RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: /gone"),
    ],
)
def test_a_token_that_is_missing_is_told_of(
    repository: Path, tmp_path: Path, variables: dict[str, str], own: bool, text: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", **variables}
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "" if own else f"127.0.0.1:{server.getsockname()[1]}"
        words = [sys.executable, "-c", JOIN, address]
        done = subprocess.run(words, cwd=repository, env=environment, capture_output=True, text=True, timeout=60)
    shown = address or "local"
    assert done.stdout.splitlines() == [text, f"ray_address: got '{shown}', which cannot be joined or started: {text}"], (
        done.stderr
    )
