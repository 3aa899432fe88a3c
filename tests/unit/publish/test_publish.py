"""Data sets pushed to a hub that runs here: one commit, gone on with, found again; and what is refused before anything is sent."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from jobs.compact import main as compact
from jobs.publish import main
from pipelines.publish.stream import Stream
from pipelines.store.location import locate
from tests.hub import TOKEN, Hub, Repository, running_hub
from tests.unit.output.test_compact import make_run
from tests.unit.output.test_samples import make_set

# The way in which huggingface_hub 2.4 hands a file to its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which is read when it is imported
        monkeypatch.setenv("MY_TOKEN", TOKEN)
        yield hub


def words(folder: Path | str, *others: str) -> list[str]:
    return [f"input={folder}", "repository=me/edits", "token_variable=MY_TOKEN", *others]


def shards_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*-of-*")}


def test_a_data_set_goes_in_one_commit_and_is_found_again(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_set(tmp_path / "set")
    (folder / "data" / "mine.txt").write_text("mine")
    (folder / "report.html").write_text("for its maker")
    assert main(words(folder, "private=true", "license=mit")) == 0
    repository = hub.repositories["me/edits"]
    first = repository.commits["main"][-1]
    assert capsys.readouterr().out.endswith(f" MB: {hub.url}/datasets/me/edits/commit/{first}\n")
    assert any("left out: 1 files that are no shards, 'data/mine.txt' the first" in text for text in caplog.messages)
    assert not any("licence" in text for text in caplog.messages)
    files = repository.branches["main"]
    shards = shards_of(folder)
    assert set(files) == {*shards, ".gitattributes", "README.md", "run.json", "samples.png"}
    assert {name: files[name] for name in shards} == shards and repository.private
    assert hub.parts and len(hub.objects) > len(hub.parts)  # larger ones in parts
    card = files["README.md"].decode()
    assert "\nlicense: mit\n" in card and "path: data/train-*.parquet" in card and card.endswith("# Edits\nme/edits\n")

    hub.asked.clear()
    assert main(words(folder, "license=mit")) == 0
    assert capsys.readouterr().out.startswith("there already, nothing to do: 11 files, ")
    assert all(each.startswith("GET") for each in hub.asked) and len(repository.commits["main"]) == 2
    assert main(words(folder, "license=cc-by-4.0")) == 0  # the card alone goes
    assert len(repository.commits["main"]) == 3 and not hub.count("PUT")


def test_faults_are_waited_for_and_a_lost_answer_makes_no_second_commit(tmp_path: Path, hub: Hub) -> None:
    folder = make_set(tmp_path / "set")
    hub.faults = {"PUT /storage": [500], "/batch": [429], "/repos/create": [503], "/tree": [502], "/commit": [-500]}
    assert main(words(folder)) == 0
    assert not any(hub.faults.values())
    repository = hub.repositories["me/edits"]
    assert len(repository.commits["main"]) == 2 and shards_of(folder).items() <= repository.branches["main"].items()


def test_after_a_kill_only_what_is_missing_is_sent(tmp_path: Path, hub: Hub) -> None:
    folder = make_set(tmp_path / "set")
    command = [sys.executable, "-m", "jobs.publish", *words(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill() -> None:
        if len(hub.objects) >= 3:
            child.kill()

    hub.before_put = kill
    assert child.wait(timeout=60) == -signal.SIGKILL
    with hub.lock:
        there = set(hub.objects)
    assert 3 <= len(there) < len(shards_of(folder)) and hub.repositories["me/edits"].commits["main"] == ["0" * 40]
    hub.before_put = lambda: None
    hub.asked.clear()
    assert main(words(folder)) == 0
    sent = {each.split("/")[2] for each in hub.asked if each.startswith("PUT")}
    assert sent and not sent & there
    assert len(hub.repositories["me/edits"].commits["main"]) == 2
    assert shards_of(folder).items() <= hub.repositories["me/edits"].branches["main"].items()


def test_a_dry_run_sends_nothing(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_TOKEN")
    folder = make_set(tmp_path / "set")
    assert main(words(folder, "dry_run=true")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("would push in one commit: 11 files, ")
    assert lines[0].endswith(f": {hub.url}/datasets/me/edits (main), which does not exist yet")
    size = (folder / "data" / "train-00000-of-00002.parquet").stat().st_size
    assert f"    data/train-00000-of-00002.parquet: {size} bytes" in lines
    assert hub.asked == ["GET /api/datasets/me/edits"] and not hub.repositories


def test_a_compacted_run_has_a_card_of_its_own_and_may_lie_in_any_store(
    tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "run")
    assert compact([f"input={tmp_path / 'run'}", f"output={tmp_path / 'shards'}", "format=webdataset"]) == 0
    fsspec.filesystem("memory").put(str(tmp_path / "shards"), "/pushed", recursive=True)
    assert main(words("memory://pushed", "revision=v1")) == 0
    assert any("the card states no licence" in text for text in caplog.messages)
    repository = hub.repositories["me/edits"]
    assert set(repository.branches["main"]) == {".gitattributes"}
    files = repository.branches["v1"]
    assert set(files) == {".gitattributes", "README.md", "run.json", "data/train-00000-of-00001.tar"}
    assert files["data/train-00000-of-00001.tar"] == (tmp_path / "shards/data/train-00000-of-00001.tar").read_bytes()
    card = files["README.md"].decode()
    assert "  - split: train\n    path: data/train-*.tar\n" in card
    assert "14 edits that are ok" in card and "| model_digest |" in card and "| method | vimaedit |" in card


def test_what_is_not_finished_or_not_compacted_is_refused(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run")
    folder = make_set(tmp_path / "set")
    assert main(words(tmp_path / "run")) == 2
    assert (
        "no data set in large files; allowed: the output of jobs.synthesize, or what `python -m jobs.compact"
        in capsys.readouterr().err
    )
    monkeypatch.delenv("MY_TOKEN")
    assert main(words(folder)) == 2
    assert "token_variable: got MY_TOKEN, which is not set; allowed: the name of" in capsys.readouterr().err
    (folder / "_SUCCESS").unlink()
    assert main(words(folder)) == 2
    assert "which has no _SUCCESS; allowed: a finished output" in capsys.readouterr().err
    (folder / "_SUCCESS").touch()
    shard = folder / "data" / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert main(words(folder)) == 2
    assert f"input: got {shard}, which cannot be read (" in capsys.readouterr().err
    shard.unlink()
    assert main(words(folder)) == 2
    assert "data/train has 1 files" in capsys.readouterr().err
    assert main([f"input={folder}", "repository=edits"]) == 2
    assert "repository: got 'edits'; allowed: owner/name" in capsys.readouterr().err
    assert hub.asked == []


def test_what_the_hub_or_the_repository_does_not_allow_is_said(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_set(tmp_path / "set")
    hub.repositories["me/edits"] = Repository(private=False)
    files = hub.repositories["me/edits"].branches["main"]
    files |= {"data/train-00000-of-00009.parquet": b"old", "LICENSE": b"mine"}
    assert main(words(folder)) == 2
    assert (
        "holds 1 other data files, data/train-00000-of-00009.parquet the first; allowed: replace=true"
        in capsys.readouterr().err
    )
    assert main(words(folder, "replace=true", "private=true")) == 2
    assert "private: got true, where me/edits exists and is public; allowed: to leave it out" in capsys.readouterr().err
    assert main(words(folder, "replace=true", "license=beer")) == 2
    assert "license: got beer, with a card that the hub does not take: Invalid metadata in README.md" in capsys.readouterr().err
    assert hub.objects == {}
    monkeypatch.setenv("MY_TOKEN", "hf_readonly")
    assert main(words(folder, "replace=true")) == 2
    error = capsys.readouterr().err
    assert (
        "where the hub refuses (403: this token may not write); allowed: one that the token in MY_TOKEN may write to" in error
    )
    assert "hf_readonly" not in error
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert main(words(folder, "replace=true")) == 0
    assert "1 files removed" in capsys.readouterr().out
    assert "data/train-00000-of-00009.parquet" not in files and files["LICENSE"] == b"mine"
    assert len(hub.repositories["me/edits"].commits["main"]) == 2


def test_a_stream_reads_what_is_asked_for_and_holds_nothing_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.publish.stream.BLOCK_BYTES", 7)
    content = os.urandom(101)
    (tmp_path / "a").write_bytes(content)
    stream = Stream(locate(str(tmp_path / "a")), 101)
    assert b"".join(iter(lambda: stream.read(3), b"")) == content and stream._block == b""
    assert (stream.seek(-5, io.SEEK_END), stream.read(), stream.read(4)) == (96, content[96:], b"")
    assert (stream.seek(2), stream.read(50), stream.tell(), stream.read()) == (2, content[2:52], 52, content[52:])
    shorter = Stream(locate(str(tmp_path / "a")), 102)
    with pytest.raises(OSError, match="got 101 bytes from 0 on, where 102 were expected"):
        shorter.read()


@pytest.mark.parametrize("card", [b"---\na: [\n---\n", b"---\n- a\n---\n", b"---\n1: a\n---\n", b"caf\xe9"])
def test_a_card_that_is_none_is_named(card: bytes, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path / "set")
    (folder / "README.md").write_bytes(card)
    assert main(words(folder)) == 2
    assert "jobs.publish: input: got " in (error := capsys.readouterr().err) and "README.md, which is damaged" in error


def test_a_token_that_no_header_can_hold_is_not_quoted(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_set(tmp_path / "set")
    monkeypatch.setenv("MY_TOKEN", "hf_se\ncret")
    assert main(words(folder)) == 2
    assert "token_variable: got 'MY_TOKEN', whose value" in (error := capsys.readouterr().err) and "cret" not in error
    monkeypatch.setenv("MY_TOKEN", f"{TOKEN}\n")  # as files hold it
    assert main(words(folder, "license=mit")) == 0
