"""Files of the Hugging Face hub: fetched once, kept in the hub's own cache."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["fetch", "fetch_folder"]


def fetch(repository: str, files: Sequence[str]) -> Path:
    """The folder of the cache that holds `files` of a repository; those not there are downloaded.

    What is in the cache is used as it is. A broken connection is taken up where it broke; a fetch
    that was stopped goes on with the first file that is not whole. Large files are compared with
    the checksum that the hub names.

    Raises:
        ValueError: if a file cannot be had (no connection, no such repository or file, or one that
            asks for an agreement), or arrived damaged.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    folder: Path | None = None
    for name in files:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            found = Path(cached)
        else:
            try:
                found = Path(hf_hub_download(repository, name))
            except Exception as error:
                raise _cannot_have(repository, name, error) from error
            _check_download(found)
        folder = found.parents[len(Path(name).parts) - 1]
    if folder is None:
        raise ValueError(f"no file of {repository} was asked for; name a layer that it has")
    return folder


def fetch_folder(repository: str, path: str) -> Path:
    """A folder of a repository (all of it where `path` is empty), downloaded where not cached.

    Raises:
        ValueError: as `fetch`.
    """
    from huggingface_hub import snapshot_download

    patterns = [f"{path}/*", path] if path else None
    try:
        snapshot = Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise _cannot_have(repository, path or "its files", error) from error
    if not (snapshot / path).exists():
        raise ValueError(f"the repository {repository} has nothing at {path!r}; look at its files")
    return snapshot / path


def _cannot_have(repository: str, name: str, error: Exception) -> ValueError:
    """What went wrong and what to do, in a line each.

    Raises:
        Exception: `error` itself, if it is none of the hub's or the network's.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    known = (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError)
    from_network = type(error).__module__.startswith("httpx")  # its name differs between releases
    if not (isinstance(error, known) or from_network):
        raise error
    if isinstance(error, GatedRepoError):
        do = "accept its terms on the hub and log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        do = "there is no such repository, or it is private: check the name"
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        do = "the repository has no such file: it may have been rearranged since"
    else:
        do = (
            "there is no copy in the cache and the hub cannot be reached: connect, or download it "
            f"elsewhere (`hf download {repository} {name}`) and copy the cache folder here"
        )
    cause = str(error).strip().splitlines()
    told = f" ({cause[0][:200]})" if cause else ""
    return ValueError(f"cannot fetch {name} of {repository}: {do}{told}")


def _check_download(path: Path) -> None:
    """Compare a large file with its name in the cache, which is the SHA-256 that the hub stated.

    Raises:
        ValueError: if they differ; the file is then removed, so that it is fetched again.
    """
    blob = path.resolve()
    if len(blob.name) != 64 or not path.is_symlink():
        return
    with blob.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise ValueError(f"{path.name} arrived damaged and was removed; ask for it again")
