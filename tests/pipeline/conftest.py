"""One local Ray for all pipeline tests, and small inputs. Logical CPUs: two actors of one thread, two for the rest."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.output.config import EditJobConfig
from pipelines.store.location import locate
from vimaedit.decoding import decode_image

MakeJob = Callable[..., EditJobConfig]
MakePicture = Callable[..., bytes]


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Serve a bucket over the S3 protocol. Ray starts after it, so that workers inherit its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        locate("s3://pictures").fs.mkdir("pictures")
        yield "s3://pictures"
    server.stop()


@pytest.fixture(scope="session")
def worker_python(repository: Path, bucket: str) -> Iterator[str]:
    """Start the process that workers are forks of, with the address of the bucket; the command that asks it for one."""
    program = repository / "tests" / "pipeline" / "forked.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory(prefix="forked-", dir="/tmp") as folder:
        place = Path(folder) / "socket"
        command = [sys.executable, str(program), "serve", str(place)]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as server:
            while not place.exists():  # Ray's own processes have seconds to start; nothing competes with them
                assert server.poll() is None
                time.sleep(0.1)
            yield shlex.join([sys.executable, "-I", "-S", str(program), str(place)])
            assert server.stdin is not None and server.poll() is None
            server.stdin.close()


@pytest.fixture(scope="session")
def cluster(repository: Path, worker_python: str) -> Iterator[None]:
    import ray
    from ray.data import DataContext

    with warnings.catch_warnings():
        # Making the first context warns of a field that Ray fills in itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        DataContext.get_current()
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=300_000_000,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(repository)}, "py_executable": worker_python},
    )
    yield
    ray.shutdown()


@pytest.fixture
def make_job(tmp_path: Path, cluster: None) -> MakeJob:
    """Return a maker of small jobs on the built-in random model."""

    def make(**options: Any) -> EditJobConfig:
        defaults: dict[str, Any] = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "model": "random"}
        defaults |= {"steps": 1, "actors": 1, "threads": 1}
        return EditJobConfig(**{**defaults, **options})

    return make


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the signal handlers back that a job replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def make_picture() -> MakePicture:
    """Return a maker of coded pictures: smooth blobs of colour, the same for the same number."""

    def make(number: int, size: tuple[int, int] = (151, 131), mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
        blobs = np.random.default_rng(number).integers(0, 255, (5, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


def write_records(path: Path, records: list[dict[str, Any]], schema: pa.Schema | None = None, **options: Any) -> None:
    """Write records as one input file."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path, **options)


def pixels(row: dict[str, Any]) -> list[bytes | None]:
    """Decode the pictures and masks of an output row. Their files name the row that they are of."""
    pictures = (row[name] for name in ("image", "edited_image", "edit_mask", "critical_mask"))
    return [None if picture is None else decode_image(picture["bytes"]).tobytes() for picture in pictures]
