"""Push a finished data set to a hub's repository: what goes, what is there, one commit."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import disable_progress_bars

from pipelines.options import check_given
from pipelines.output.compact import CARD, PICTURES, STATE_FILE, THIS_FOLDER, read_card
from pipelines.output.finish import RUN_FILE
from pipelines.output.sets import FOLDERS, is_set, list_shards
from pipelines.publish.card import make_card
from pipelines.publish.hub import KIND, Item, Remote, ask, holds, look, prepare, push
from pipelines.store.location import Damaged, Location, damaged, exists, is_complete, locate, read_bytes, read_json
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import BrokenParquet, read_footer
from vimaedit.chat import header_key
from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)

NAME = r"\w(?:[\w.-]{0,94}\w)?"
REPOSITORY = re.compile(f"{NAME}/{NAME}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """`jobs.publish`: which data set goes, and where to."""

    input: str = ""  # output of jobs.compact or jobs.synthesize, finished; local or any fsspec URL
    repository: str = ""  # owner/name of a data set on the hub; made where there is none
    revision: str = "main"  # branch that the commit goes to; made where there is none
    private: bool | None = None  # whether a new repository is private; unset: as its owner's account says
    license: str | None = None  # for the card: an identifier as the hub knows them, such as cc-by-4.0
    token_variable: str = "HF_TOKEN"  # NAME of the environment variable with the token
    replace: bool = False  # take other files away, in the same commit, that lie in the repository's data folders
    dry_run: bool = False  # say what would go, and send nothing

    def __post_init__(self) -> None:
        check_given(self, ("input",))
        if REPOSITORY.fullmatch(self.repository) is None:
            raise ConfigError(
                f"repository: got {self.repository!r}; allowed: owner/name, of letters, digits, and -, _, . between them"
            )


@dataclass(frozen=True, kw_only=True)
class Published:
    """What has gone, would go (`dry_run`), or was there already: files with their bytes, and the repository or its commit."""

    files: Sequence[tuple[str, int]]
    removed: Sequence[str]
    place: str
    did: str
    warnings: tuple[str, ...]
    listed: bool = False

    def text(self) -> str:
        """Say it in a line; a dry run lists the files."""
        removed = f", {len(self.removed)} files removed" if self.removed else ""
        total = sum(size for _, size in self.files)
        lines = [f"{self.did}: {len(self.files)} files, {total / 1e6:.1f} MB{removed}: {self.place}"]
        if self.listed:
            lines += [f"  {path}: {size} bytes" for path, size in self.files] + [f"  removed: {path}" for path in self.removed]
        return "\n".join(lines)


def publish(config: PublishConfig) -> Published:
    """Push a finished, compacted data set in one commit, or find that the repository has exactly it.

    One commit, since readers shall never see half a data set, and hubs count commits an hour. Files are uploaded before it, several at a
    time, streamed from where they lie; after an interruption the same command sends only those that the hub does not have yet,
    which it knows by their digests. (`upload_large_folder` goes on too, but makes many commits and needs a local folder.)

    Raises: ConfigError for an input that is not finished or not compacted, a token or right that is missing, and a repository with other data.
    """
    disable_progress_bars()
    logging.getLogger("huggingface_hub._commit_api").setLevel(
        logging.ERROR
    )  # else it warns of every stream that is no local file
    source = locate(config.input)
    items, warnings = _collect(source, config)
    token = header_key("token_variable", config.token_variable)
    if not token and not config.dry_run:
        raise ConfigError(
            f"token_variable: got {config.token_variable}, which is not set; allowed: the name of an environment variable with a token "
            "that may write to the repository"
        )
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token or False, library_name="vimaedit")
    try:
        return _publish(api, config, source, items, tuple(warnings))
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code not in (400, 401, 403, 404, 412):
            raise
        if code == 412:
            raise RuntimeError(f"{config.repository}: was changed meanwhile; the same command looks at it again") from error
        raise ConfigError(
            f"repository: got {config.repository}, where the hub refuses ({code}: {error.server_message or 'without a reason'}); allowed: one that the "
            f"token in {config.token_variable} may write to"
        ) from error


def _publish(
    api: HfApi, config: PublishConfig, source: Location, items: Sequence[Item], warnings: tuple[str, ...]
) -> Published:
    files = [(item.path, item.size) for item in items]
    place = f"{api.endpoint}/datasets/{config.repository} ({config.revision})"
    remote = look(api, config.repository, config.revision)
    removed = _others(remote, items)
    if removed and not config.replace:
        raise ConfigError(
            f"repository: got {config.repository}, which holds {len(removed)} other data files, {removed[0]} the first; allowed: replace=true, which "
            "takes them away in the same commit, or another repository or revision"
        )
    if remote is not None and config.private is not None and remote.private != config.private:
        is_now = "private" if remote.private else "public"
        raise ConfigError(
            f"private: got {str(config.private).lower()}, where {config.repository} exists and is {is_now}; allowed: to leave it out, or to change "
            "the repository on the hub first"
        )

    def told(did: str, where: str, *, listed: bool = False) -> Published:
        return Published(files=files, removed=removed, place=where, did=did, warnings=warnings, listed=listed)

    if config.dry_run:
        state = "which does not exist yet" if remote is None else f"which exists, with {len(remote.files)} files"
        return told("would push in one commit", f"{place}, {state}", listed=True)
    logger.info("%d files are read for their digests", len(items))
    additions = prepare(items)
    if remote is not None and not removed and holds(remote, additions):
        return told("there already, nothing to do", place)
    if remote is None:
        ask(lambda: api.create_repo(config.repository, repo_type=KIND, private=config.private, exist_ok=True))
    if remote is None or remote.head is None:
        if config.revision != "main":
            ask(lambda: api.create_branch(config.repository, repo_type=KIND, branch=config.revision, exist_ok=True))
        remote = look(api, config.repository, config.revision)
    if not is_complete(source):
        raise RuntimeError(f"{mask_urls(source.url)}: was changed while it was read; allowed: one command at a time")
    logger.info("%d files go to %s", len(items), place)
    head = None if remote is None else remote.head
    try:
        where = push(api, config.repository, config.revision, additions, removed, head, "Data set of vimaedit")
    except ValueError as error:
        if "README.md" not in str(error):
            raise
        raise ConfigError(f"license: got {config.license}, with a card that the hub does not take: {error}") from error
    return told("pushed in one commit", where)


def _others(remote: Remote | None, items: Sequence[Item]) -> list[str]:
    """Name the files in a repository's data folders that are none of these: readers would take them for records."""
    own = {item.path for item in items}
    found = remote.files if remote is not None else {}
    return sorted(path for path in found if path.partition("/")[0] in FOLDERS.values() and path not in own)


def _collect(source: Location, config: PublishConfig) -> tuple[list[Item], list[str]]:
    """Collect the files that go: shards, card and its pictures, `run.json`.

    Raises: ConfigError for an output that is not finished, not compacted or not whole.
    """
    place = mask_urls(source.url)
    if not is_complete(source):
        raise ConfigError(
            f"input: got {place}, which has no _SUCCESS; allowed: a finished output (the command that writes it goes on with it)"
        )
    try:
        run = read_json(source / RUN_FILE)
        if run is not None and not is_set(run):
            read_json(source / RUN_FILE, {"config": dict, "counts": dict})
    except Damaged as error:
        raise ConfigError(f"input: {error}") from error
    if run is None or not (is_set(run) or exists(source / STATE_FILE)):
        raise ConfigError(
            f"input: got {place}, which is no data set in large files; allowed: the output of jobs.synthesize, or what "
            "`python -m jobs.compact input=... output=...` writes of one of jobs.edit"
        )
    shards, warnings = list_shards(source)
    if not any(split.startswith("data/") for split in shards):
        raise ConfigError(f"input: got {place}, whose data/ holds no shards; allowed: an output with one at least")
    items = [Item(path=path, content=source / path, size=size) for files in shards.values() for path, size in files]
    suffix = items[0].path[items[0].path.rindex(".") :]
    for item in items:
        if item.path.endswith(".parquet"):
            try:
                read_footer(source / item.path)
            except BrokenParquet as error:
                raise ConfigError(f"input: {error}") from error
    own = read_card(source).replace(THIS_FOLDER, config.repository) if exists(source / CARD) else None
    try:
        card, licence = make_card(own, run, list(shards), suffix, config.license)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"input: {damaged(source / CARD, error, 'a card whose head is a mapping in YAML')}") from error
    if not licence:
        warnings = [*warnings, "the card states no licence; license=cc-by-4.0, say, puts one there"]
    more = [(CARD, card.encode()), (RUN_FILE, read_bytes(source / RUN_FILE))]
    more += [(name, read_bytes(source / name)) for name in PICTURES if exists(source / name)]
    return [*items, *(Item(path=path, content=data, size=len(data)) for path, data in more)], warnings
