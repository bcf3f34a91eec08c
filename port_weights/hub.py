"""The Hugging Face hub: one commit of a repository, on this machine and as it was uploaded.

Downloads and the cache are huggingface_hub's own, with its settings: `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`. Only
`FILES` are fetched and, where there is no `model.safetensors`, the other forms of weights that a folder may have:
shards, or `pytorch_model.bin`. No code of a repository is ever run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from port_weights.checkpoints import PICKLES, WEIGHTS, shards_of
from tfdetr_keras.names.spelling import did_you_mean

logger = logging.getLogger(__name__)

CONFIGS = ("config.json", "preprocessor_config.json")
FILES = (*CONFIGS, "model.safetensors")
PICKLED = "pytorch_model.bin"
_INDICES = tuple(name for name in WEIGHTS if name.endswith(".index.json"))
_PLAIN_NAME = re.compile(r"[\w.-]+\.(safetensors|bin)")
_HASH = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Commit:
    """One version of a repository.

    Args:
        hub_id: owner/name.
        folder: in the cache, named after the commit.
    """

    hub_id: str
    folder: Path

    @property
    def name(self) -> str:
        """The commit's hash."""
        return self.folder.name

    @property
    def weights(self) -> Path | None:
        """The file of the weights, or the index of their shards; a link may be all that is left of it."""
        return next((self.folder / name for name in WEIGHTS if os.path.lexists(self.folder / name)), None)

    @property
    def origin(self) -> dict[str, str]:
        """What each file that is read was when it was fetched: the hash of its content, or else its size."""
        return {
            name: Path(os.readlink(path)).name if path.is_symlink() else f"{path.stat().st_size} bytes"
            for name in self.read_files
            if name != "preprocessor_config.json" and os.path.lexists(path := self.folder / name)
        }

    @property
    def read_files(self) -> list[str]:
        """Names of the files that porting reads."""
        weights = [] if self.weights is None else [self.weights.name]
        return [*CONFIGS, *weights, *_shards(self)]

    def __str__(self) -> str:
        return self.hub_id


def is_hub_id(source: Any) -> bool:
    """Whether a source has the form owner/name, and nothing of that name is at hand, nor is it that of a file."""
    if not isinstance(source, (str, os.PathLike)) or not HUB_ID.fullmatch(os.fspath(source)):
        return False
    path = Path(source)
    return not path.exists() and path.suffix not in (".safetensors", ".keras", *PICKLES)


def fetch(hub_id: str, revision: str | None = None, known: Iterable[str] = ()) -> Commit:
    """Fetch a repository's weights, or find them in the cache: without a network, what was fetched last.

    Args:
        hub_id: owner/name.
        revision: branch, tag or commit; the main branch by default.
        known: hub ids that may have been meant, where there is none like it.

    Raises:
        ValueError: the hub cannot be reached and the cache does not have it; or there is no such repository, or it is
            one that needs a token.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download(revision: str | None, names: Sequence[str]) -> Path:
        try:
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(names)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(f"{hub_id}: {_explained(error, hub_id, revision, known)}") from error

    logger.info("looking up %s on the hub", hub_id)
    unreached = None if revision and _HASH.fullmatch(revision) else _why_not_reached(hub_id, revision)
    commit = Commit(hub_id, download(revision, (*FILES, *_INDICES)))
    if commit.weights is None:
        download(commit.name, [PICKLED])
    if commit.weights is None:
        where = "the hub's cache holds" if unreached else "the hub has"
        raise ValueError(f"{hub_id}: {where} none of {', '.join(WEIGHTS)} of it, so there are no weights to read")
    if commit.weights.name in _INDICES:
        shards = _shards(commit)
        if not all(os.path.lexists(commit.folder / shard) for shard in shards):
            download(commit.name, shards)
    if unreached:  # where a branch may have moved meanwhile
        logger.warning(
            "%s: the hub was not asked (%s); this is commit %s, which was fetched last", hub_id, unreached, commit.name
        )
    return commit


def _why_not_reached(hub_id: str, revision: str | None) -> str | None:
    """Return why the hub does not tell which commit a branch stands for; None if it does."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.HfApi().repo_info(hub_id, revision=revision)
    except Exception as error:  # of whichever HTTP client; downloading says what it means if nothing is in the cache
        return _line(error)
    return None


def _shards(commit: Commit) -> list[str]:
    """Return the names of the files that an index names, which the hub's client would take for patterns."""
    index = commit.weights
    names = sorted(set(shards_of(index).values())) if index and index.name in _INDICES and index.is_file() else []
    if odd := [name for name in names if not _PLAIN_NAME.fullmatch(name)]:
        raise ValueError(f"{commit.hub_id}: its index names {odd[0]!r}, which is not the name of a file of weights")
    return names


def _explained(error: Exception, hub_id: str, revision: str | None, known: Iterable[str]) -> str:
    """Return why there is no such model, as far as the hub or its absence tells, and what will do instead."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    nothing_here = "there is no such file or folder here"
    # What is missing in the cache is missing because of what happened before.
    reason = error if error.__cause__ is None or isinstance(error, HfHubHTTPError) else error.__cause__
    if isinstance(reason, GatedRepoError):
        return (
            "the hub gives this model only to users who accepted its conditions: do so on its page there, and set "
            "HF_TOKEN to a token of yours"
        )
    if isinstance(reason, RepositoryNotFoundError):
        return (
            f"{nothing_here}, and on the hub no such model, or it is a private one, for which HF_TOKEN must be set"
            f"{did_you_mean(hub_id, known)}"
        )
    if isinstance(reason, RevisionNotFoundError):
        return f"the hub has this model, but no branch, tag or commit {revision}"
    instead = (
        f"a folder with config.json and model.safetensors will do instead (elsewhere: hf download {hub_id} --local-dir "
        "FOLDER), a .safetensors or .pth file, or a checkpoint that comes with the package, such as rt-detr-tiny"
    )
    if isinstance(reason, OfflineModeIsEnabled):
        return f"{nothing_here}, the hub's cache does not hold it, and HF_HUB_OFFLINE forbids to ask the hub; {instead}"
    if isinstance(reason, HfHubHTTPError):
        return f"{nothing_here}, and the hub did not give it ({_line(reason)}); {instead}"
    return (
        f"{nothing_here}, the hub's cache does not hold it, and the hub cannot be reached ({_line(reason)}); {instead}"
    )


def _line(error: BaseException) -> str:
    """Return the first line of an error, without the request ids and addresses that may follow."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" (Request ID")[0].strip()


def verify(commit: Commit) -> None:
    """Check that the files of a commit are what the hub said they were.

    In the cache each is a link to a file that is named after the hash of its content: SHA-256 for large files, git's
    SHA-1 for small ones. Where the file system knows no links there is nothing to compare with.

    Raises:
        ValueError: a file that leads out of the cache, or has another content than its name says.
    """
    blobs = (commit.folder.parent.parent / "blobs").resolve()
    for entry in sorted(commit.folder.iterdir()):
        if entry.name not in commit.read_files or not entry.is_symlink():
            continue
        blob = entry.resolve()
        if blob.parent != blobs:
            raise ValueError(f"{entry} leads to {blob}, which is not in the cache of {commit.hub_id}: delete it")
        expected, found = blob.name, _hash(blob)
        if found is not None and found != expected:
            raise ValueError(
                f"{blob}: {entry.name} of {commit.hub_id} is damaged, its hash is {found}: delete that file, and it "
                "will be fetched again"
            )


def _hash(blob: Path) -> str | None:
    """Return a file's hash of the kind that its name is; None if the name is no hash."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        digest = hashlib.sha1(b"blob %d\0" % os.path.getsize(blob), usedforsecurity=False)
    else:
        return None
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
