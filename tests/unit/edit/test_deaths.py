"""The ledger: which requests are suspects after a death, what outlives a driver, and when a start is given up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.edit.deaths import (
    UNSAID,
    Deaths,
    Ledger,
    RequestKey,
    Suspects,
    Worker,
    read_suspects,
    suspects_place,
    write_suspects,
)
from pipelines.store.location import locate, put_atomic
from pipelines.store.patience import LOAD_TRIES
from vimaedit.errors import ConfigError

A, B, C = RequestKey(3, 0), RequestKey(3, 1), RequestKey(5, 0)


def worker(pid: int = 11, node: str = "n1", actor: str = "a1") -> Worker:
    return Worker(actor=actor, node=node, pid=pid)


def ledger(suspects: dict[str, Suspects] | None = None, dead: str = "") -> Ledger:
    return Ledger(suspects or {}, lambda node: node != dead)


def test_what_was_being_edited_at_a_death_is_suspect() -> None:
    noted = ledger()
    assert noted.enter("u1") == ({}, False)
    noted.begin("u1", [A, B], worker())
    noted.end("u1")
    noted.begin("u1", [C], worker())
    noted.begin("u2", [A], worker(13))
    assert noted.enter("u1") == ({C: Deaths(all=1, alone=1, cause=UNSAID)}, True)
    assert noted.enter("u1") == ({C: Deaths(all=1, alone=1, cause=UNSAID)}, False)
    assert noted.enter("u3") == ({}, False)


def test_only_a_death_alone_speaks_against_one_request() -> None:
    noted = ledger()
    noted.begin("u", [A, B], worker())
    noted.enter("u")
    noted.begin("u", [B], worker(13))
    noted.leave("u", "CUDA error: device-side assert triggered")
    suspects, has_new = noted.enter("u")
    assert has_new
    assert suspects[A] == Deaths(all=1, cause=UNSAID)
    assert suspects[B] == Deaths(all=2, alone=1, cause="CUDA error: device-side assert triggered")


def test_a_death_with_its_node_does_not_count() -> None:
    noted = ledger(dead="n7")
    noted.begin("u", [A], worker(node="n7"))
    assert noted.enter("u") == ({}, False)
    noted.begin("u", [A], worker(node="n1"))
    assert noted.enter("u")[1]


def test_a_ledger_that_was_started_anew_takes_what_it_has_not_begun() -> None:
    anew = ledger({"u": {A: Deaths(all=1)}})
    anew.end("u")
    anew.leave("u", "CUDA error")
    assert anew.enter("u") == ({A: Deaths(all=1)}, False)


def test_suspects_outlive_the_driver_and_count_only_for_the_same_work(tmp_path: Path) -> None:
    output = locate(str(tmp_path))
    assert read_suspects(output, ["u"], "c-1") == {}
    write_suspects(output, "u", {A: Deaths(all=3, alone=2, cause="x"), B: Deaths(all=1)}, "c-1")
    write_suspects(output, "other", {C: Deaths(all=1)}, "c-1")
    assert read_suspects(output, ["u", "v"], "c-1") == {"u": {A: Deaths(all=3, alone=2), B: Deaths(all=1)}}
    assert read_suspects(output, ["u"], "c-2") == {"u": {A: Deaths(), B: Deaths()}}
    write_suspects(output, "v", {A._replace(file="a"): Deaths(all=1), A._replace(file="b"): Deaths(all=2)}, "c-1")
    assert read_suspects(output, ["v"], "c-1")["v"] == {
        RequestKey(3, 0, "a"): Deaths(all=1),
        RequestKey(3, 0, "b"): Deaths(all=2),
    }
    place = suspects_place(output, "w")
    put_atomic(
        place, json.dumps({"run": "c-1", "requests": [{"input_row": 3, "edit_index": 0, "died": 1, "died_alone": 1}]}).encode()
    )
    assert read_suspects(output, ["w"], "c-1")["w"] == {A: Deaths(all=1, alone=1)}  # of an earlier version
    for content in (b"{", b"{}", b'{"run": "c-1", "requests": [7]}'):
        put_atomic(output / "state" / "suspects" / "v.json", content)
        with pytest.raises(
            ConfigError, match=r"got .*/state/suspects/v.json, which is damaged \(.*\); allowed: .*\(remove it: the"
        ):
            read_suspects(output, ["v"], "c-1")
    content = json.loads(Path(suspects_place(output, "u").path).read_text())
    assert content["requests"][0] == {"input_row": 3, "edit_index": 0, "died": 3, "died_alone": 2}
    noted = ledger(read_suspects(output, ["u"], "c-1"))
    noted.begin("u", [A], worker())
    assert noted.enter("u")[0][A] == Deaths(all=4, alone=3, cause=UNSAID)


def test_a_process_that_keeps_dying_while_it_loads_is_given_up() -> None:
    noted = ledger(dead="n7")
    assert noted.start(worker(1, "n7")) is None  # this one dies with its node
    assert [noted.start(worker(pid)) for pid in range(2, 2 + LOAD_TRIES)] == [None] * LOAD_TRIES
    text, is_config = noted.start(worker(23)) or ("", True)
    assert (
        text
        == "the process of an editing actor died 3 times in a row while it loaded the model; its node's log and memory may say why"
    )
    assert not is_config
    assert noted.start(worker(23)) == (text, False)  # the same process once more
    assert noted.start(worker(29, actor="a2")) == (text, False)  # nobody has ever started


def test_tries_in_one_process_are_no_deaths_and_a_start_forgets_them() -> None:
    noted = ledger()
    for pid in (2, 3, 5, 7, 11, 13):
        assert noted.start(worker(pid)) is None
        noted.failed_start(worker(pid), "busy", False)
        assert noted.start(worker(pid)) is None
        noted.started(worker(pid))
    assert noted.why_not_started() is None


def test_wrong_configuration_is_not_tried_for_ever_but_flaky_starts_are() -> None:
    noted = ledger()
    for _ in range(LOAD_TRIES):
        assert noted.start(worker()) is None
        noted.failed_start(worker(), "model: got x", True)
    assert noted.start(worker(13, actor="a2")) == ("model: got x", True) == noted.why_not_started()
    flaky = ledger()
    for _ in range(LOAD_TRIES + 1):
        assert flaky.start(worker()) is None
        flaky.failed_start(worker(), "OSError: reset", False)


def test_an_actor_that_cannot_start_among_others_that_did_condemns_nobody() -> None:
    noted = ledger()
    noted.start(worker())
    noted.started(worker())
    for _ in range(LOAD_TRIES + 1):
        noted.failed_start(worker(17, "n2", "a2"), "model: got x", True)
        assert noted.start(worker(19, "n3", "a3")) is None
