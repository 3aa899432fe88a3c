"""Workers of the test cluster that start with other people's libraries loaded.

Most of what a worker costs is to import torch, transformers and diffusers. Here one process has imported them - nothing of this
project, and not Ray, which reads its settings as it is imported - and every worker is a fork of it that runs what Ray would
have had a Python of its own run, with the environment, folder and streams that Ray gave it. It is a process like any other, killed and
started again like any other. What forks share, and real workers do not, is the seed of Python's hashes: that no result depends on
it shows the submitted job of `output/test_resume.py`, whose workers are Python's own.

`python forked.py serve SOCKET` is the process that is forked; it ends with its standard input. `python forked.py SOCKET WORDS...`
stands where Ray wants its Python, and asks it for a worker.
"""

from __future__ import annotations

import os
import socket
import sys

LIBRARIES = {
    **dict.fromkeys(("numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "fsspec", "PIL.Image", "torch"), ()),
    "transformers": ("CLIPModel", "CLIPTextModel", "CLIPTokenizer", "CLIPVisionModelWithProjection"),
    "diffusers": ("AutoencoderKL", "DDIMScheduler", "UNet2DConditionModel"),
}


def ask(place: str, words: list[str]) -> None:
    """Have a worker forked that runs a program."""
    import json

    told = json.dumps({"words": words, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        connection.sendall(told)


def serve(place: str) -> None:
    """Import the libraries, and fork a worker for all who ask from then on."""
    import contextlib
    import gc
    import importlib
    import select
    import signal

    for name, parts in LIBRARIES.items():
        library = importlib.import_module(name)
        for part in parts:
            getattr(library, part)  # is imported as it is asked for
    gc.freeze()  # what is loaded stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}.new")
        listener.listen(64)
        os.rename(f"{place}.new", place)  # who finds it may connect
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            with contextlib.suppress(OSError):  # of one worker; Ray asks again
                connection, _ = listener.accept()
                if os.fork() == 0:
                    break
                connection.close()
        else:
            return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgrp()  # Ray ends a worker with its group
    become(connection)


def become(connection: socket.socket) -> None:
    """Run what was asked for, as a Python of its own would."""
    import json
    import runpy

    import numpy as np

    np.random.seed()
    with connection:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        told = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    sys.argv = told["words"]
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(sys.argv[1], sys.argv[2:])
