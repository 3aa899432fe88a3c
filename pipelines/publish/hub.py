"""A data set's repository on the hub, by `huggingface_hub`: what it holds, and one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from pipelines.publish.stream import Stream
from pipelines.store.location import Location, retry
from vimaedit.errors import ConfigError

T = TypeVar("T")

KIND = "dataset"  # of all repositories here
HASHING_THREADS = 4
THROTTLED = 429
CLIENT = "httpx"  # the beginning of the name of the module whose errors are the network's


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file that goes: its path in the repository, its bytes or where they lie, and how many."""

    path: str
    content: bytes | Location
    size: int


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What a repository holds. `head`: its last commit; None where it has no such branch."""

    private: bool
    head: str | None
    files: Mapping[str, RepoFile]


def ask(call: Callable[[], T]) -> T:
    """Call the hub; where it is throttling, ails or cannot be reached the call is made again after a while.

    Raises: ConfigError where the environment forbids it; HfHubHTTPError for a refusal; ConnectionError after the last attempt.
    """

    def told() -> T:
        try:
            return call()
        except OfflineModeIsEnabled as error:
            raise ConfigError(
                f"HF_HUB_OFFLINE: got {os.environ.get('HF_HUB_OFFLINE')!r}; allowed: to leave it out, to push"
            ) from error
        except Exception as error:
            if (reason := _passing(error)) is not None:
                raise ConnectionError(reason) from error
            raise

    return retry(told)


def _passing(error: Exception) -> str | None:
    """Say what is the infrastructure's fault in an error, or in what has caused it; None where nothing is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            code = cause.response.status_code
            return f"the hub answers {code}" if code == THROTTLED or code >= 500 else None
        if type(cause).__module__.startswith(CLIENT):
            return f"{type(cause).__name__}: {cause}"
        cause = cause.__cause__
    return None


def look(api: HfApi, repository: str, revision: str) -> Remote | None:
    """Look what a branch of a repository holds; None where there is no such repository, or none that the token may see."""
    try:
        private = bool(ask(lambda: api.dataset_info(repository)).private)
    except RepositoryNotFoundError:
        return None
    try:
        head = ask(lambda: api.dataset_info(repository, revision=revision)).sha
        tree = ask(lambda: list(api.list_repo_tree(repository, recursive=True, repo_type=KIND, revision=revision)))
    except RevisionNotFoundError:
        return Remote(private=private, head=None, files={})
    return Remote(private=private, head=head, files={each.path: each for each in tree if isinstance(each, RepoFile)})


def prepare(items: Sequence[Item]) -> list[CommitOperationAdd]:
    """Read all files once, for their digests."""

    def make(item: Item) -> CommitOperationAdd:
        content = item.content if isinstance(item.content, bytes) else cast(BinaryIO, Stream(item.content, item.size))
        return CommitOperationAdd(item.path, content)

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(make, items))


def holds(remote: Remote, additions: Sequence[CommitOperationAdd]) -> bool:
    """Whether a repository has exactly these files, by their digests."""
    return all(_is_same(remote.files.get(each.path_in_repo), each) for each in additions)


def _is_same(file: RepoFile | None, addition: CommitOperationAdd) -> bool:
    if file is None or file.size != addition.upload_info.size:
        return False
    if file.lfs is not None:
        return bool(file.lfs.sha256 == addition.upload_info.sha256.hex())
    with addition.as_file() as stream:  # a small one
        return bool(file.blob_id == git_hash(stream.read()))


def push(
    api: HfApi,
    repository: str,
    revision: str,
    additions: Sequence[CommitOperationAdd],
    removed: Sequence[str],
    head: str | None,
    message: str,
) -> str:
    """Upload files, then make one commit of them on top of `head`; return its URL. Files that the hub has by their digests are not
    sent again.

    A commit whose answer was lost is found: the next attempt looks first. Raises: as `ask`; ValueError for a card that the hub does not
    take.
    """

    def commit() -> str:
        remote = look(api, repository, revision)
        if remote is not None and remote.head != head and holds(remote, additions) and not set(removed) & set(remote.files):
            return f"{api.endpoint}/datasets/{repository}/commit/{remote.head}"
        return str(
            api.create_commit(
                repository,
                [*additions, *(CommitOperationDelete(path) for path in removed)],
                commit_message=message,
                repo_type=KIND,
                revision=revision,
                parent_commit=head,
            ).commit_url
        )

    return ask(commit)
