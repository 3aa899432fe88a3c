"""Where editing is placed, by what a cluster offers now and may offer later."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pipelines.cluster.place import Cluster, Placement, place
from pipelines.cluster.session import check_reachable
from pipelines.options import Place
from vimaedit.errors import ConfigError
from vimaedit.methods.options import Segmenter


def placed(cluster: Cluster, **options: Any) -> Placement:
    return place(Place(threads=1, **options), cluster)


def offer(gpus: float = 0, most_gpus: float | None = 0, cpus: float = 7) -> Cluster:
    return Cluster(cpus=cpus, gpus=gpus, node_cpus=cpus, most_gpus=most_gpus)


def test_gpus_that_are_there_are_used() -> None:
    for device in ("auto", "cuda"):
        found = placed(offer(gpus=3, most_gpus=3), device=device)
        assert (found.use_gpu, found.num_gpus, found.num_actors, found.likely_actors) == (True, 1.0, None, 3)
        assert not found.waits and found.warning is None
    assert not placed(offer(gpus=3, most_gpus=3), device="cpu").use_gpu


def test_auto_edits_on_the_cpu_and_says_so_where_a_gpu_may_come() -> None:
    assert placed(offer()).warning is None
    for most in (None, 5):
        found = placed(offer(most_gpus=most))
        assert not found.use_gpu
        assert found.warning == (
            "device=auto: the cluster has no GPU now, so the CPU edits; device=cuda waits until one has come"
        )


def test_what_is_compiled_needs_a_gpu() -> None:
    assert place(Place(), offer(gpus=1, most_gpus=1), compiled=True).use_gpu
    with pytest.raises(ConfigError, match="^compile: got true on a CPU; allowed: false, or device=cuda$"):
        place(Place(), offer(), compiled=True)


def test_cuda_waits_for_a_gpu_that_may_come() -> None:
    for most, actors in ((None, 1), (5, 5), (2**63, 1)):
        found = placed(offer(most_gpus=most), device="cuda")
        assert found.use_gpu and found.waits and found.likely_actors == actors
    with pytest.raises(ConfigError, match="^device: got cuda, but the cluster has no GPU and gets none; allowed: auto, cpu$"):
        placed(offer(most_gpus=0), device="cuda")


def test_more_actors_than_gpus_only_where_more_may_come() -> None:
    assert placed(offer(gpus=3, most_gpus=3), actors=3).warning is None
    for most in (None, 11):
        found = placed(offer(gpus=3, most_gpus=most), actors=5)
        assert found.num_actors == 5
        assert found.warning == "actors: 5 are asked for and 3 GPUs are there now; the others start as GPUs come"
    with pytest.raises(
        ConfigError, match="^actors: got 5, one GPU each; allowed: at most 3, the GPUs of the cluster, or auto$"
    ):
        placed(offer(gpus=3, most_gpus=3), actors=5)


def test_actors_share_the_cpus_and_leave_one() -> None:
    found = placed(offer(cpus=7), actors=4)
    assert (found.num_actors, found.num_cpus) == (4, 1)
    assert placed(offer(cpus=4), actors=5).num_cpus == 0.6
    assert placed(offer(cpus=7)).num_actors == 6
    with pytest.raises(ConfigError, match="^actors: got 9973, too many for 4 CPUs; allowed: at most 300$"):
        placed(offer(cpus=4), actors=9973)


def test_a_cluster_that_nobody_answers_for_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"^ray_address: got '127\.0\.0\.1:{port}', where nobody answers \(.*\); allowed: "
        ):
            check_reachable(f"127.0.0.1:{port}")
        listener.listen()
        check_reachable(f"127.0.0.1:{port}")
        check_reachable(f"ray://127.0.0.1:{port}")
    check_reachable("auto")


@pytest.mark.parametrize("address", ["head", "127.0.0.1", "http://127.0.0.1:8265", ":6379", "127.0.0.1:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^ray_address: got '.*allowed: HOST:PORT of a running cluster, auto, local"):
        check_reachable(address)


def test_a_stage_beside_editing_has_room_of_its_own() -> None:
    for cpus, actors in ((2.0, 1), (4.0, 1), (8.0, 3), (8.0, 7)):
        found = place(Place(threads=1), offer(cpus=cpus), segmenter=Segmenter(actors=actors))
        assert found.num_actors is not None and found.stage_actors == actors and 0 < found.stage_cpus <= 1
        assert found.num_actors * found.num_cpus + actors * found.stage_cpus + 1 <= cpus  # and reading and writing go on
        assert (found.stage_gpus, found.num_gpus) == (0, 0)
    shared = place(Place(), offer(gpus=2, most_gpus=2), segmenter=Segmenter(device="cuda", gpu_share=0.2))
    assert (shared.stage_gpus, shared.num_gpus) == (0.2, 0.8)
    assert place(Place(), offer(gpus=2, most_gpus=2), segmenter=Segmenter()).num_gpus == 1.0
    with pytest.raises(
        ConfigError, match="^segmenter.device: got cuda where editing is on CPUs; allowed: cpu, or a cluster with GPUs"
    ):
        place(Place(), offer(), segmenter=Segmenter(device="cuda"))
    with pytest.raises(ConfigError, match="^segmenter.actors: got 1000, too many for 7 CPUs"):
        place(Place(), offer(), segmenter=Segmenter(actors=1000))
