"""Datasets from a repository on the Hugging Face Hub, by default OG-MARL's, which has vaults as zip archives.

Archives are large, so an interrupted download resumes where it stopped. `huggingface_hub` finds and names the file, but
(in version 2) begins again each time, so this module does the transfer itself.
"""

import contextlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omcda_jax.data import manifest
from omcda_jax.data.formats import vault
from omcda_jax.files import made_once, replacing, sha256
from omcda_jax.system import one_line
from omcda_jax.types import ConfigError, DatasetError

REPOSITORY = "InstaDeepAI/og-marl"
_PIECE = 1 << 20  # bytes read at once
_TIMEOUT = 30.0  # seconds without a byte


def download(
    name: str,
    out: str | os.PathLike,
    *,
    repository: str = REPOSITORY,
    revision: str = "main",
    endpoint: str | None = None,
    log: Callable[[str], None] = print,
) -> list[Path]:
    """Fetch an archive, compare it with the hub's SHA-256 and unpack it.

    The folder `out/name` then contains the archive's contents, `origin.json` (repository, file, revision, size,
    SHA-256), and a manifest for `verify` next to every vault. An existing folder is left as it is. If several calls
    want the same archive at once, one fetches it and the others wait.

    Args:
        name: the archive's path in the repository, with or without `.zip`, such as `core/smac_v1/5m_vs_6m`.
        out: the folder that `name` is put into.
        repository: repository of datasets, for instance that of a mirror.
        revision: a branch, tag or commit.
        endpoint: the hub's address; None is that of the environment variable HF_ENDPOINT, or huggingface.co.
        log: called with one line of text now and then.

    Returns:
        The vaults in the folder.

    Raises:
        ConfigError: huggingface_hub is not installed, there is no such archive, or a folder cannot be written.
        DatasetError: the connection broke (the same call resumes), or the archive is damaged.
    """
    hub = _require()
    name = name.strip("/").removesuffix(".zip")
    if not name or ".." in Path(name).parts:
        raise ConfigError(f"NAME: expected an archive's path such as core/smac_v1/5m_vs_6m, found {name!r}")
    target = Path(out) / name
    if target.is_file():
        raise ConfigError(f"{target}: expected a folder or nothing, found a file")
    if not target.is_dir():
        archive = _find(hub, name, repository, revision, endpoint)
        partial = target.with_name(f"{target.name}.{archive['sha256'][:16]}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            wait = lambda holder: log(f"waiting for another process that fetches it ({holder})")
            with made_once(target, partial.with_suffix(".lock"), wait) as missing:
                if missing:
                    _transfer(archive, partial, log)
                    _unpack(archive, partial, target)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            done = partial.stat().st_size if partial.exists() else 0
            raise DatasetError(
                f"{archive['file']}: {done} of {archive['size']} bytes, then: {error};"
                " the same command resumes from there"
            ) from error
        except OSError as error:
            raise ConfigError(f"{target}: cannot write: {error.strerror or error}") from error
    return _vaults(target)


def _require() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(f"downloads need huggingface_hub ({error}): pip install 'omcda-jax[hub]'") from error
    return huggingface_hub


def archives(repository: str, *, revision: str = "main", endpoint: str | None = None) -> list[str]:
    """Return the names that `download` takes from a repository, in order.

    Args:
        repository, revision, endpoint: as in `download`.

    Raises:
        ConfigError: huggingface_hub is not installed, or there is no such repository.
        DatasetError: the hub does not answer.
    """
    hub = _require()
    with _answering(hub, f"{repository} at {revision}", "a repository of datasets"):
        files = hub.HfApi(endpoint=endpoint).list_repo_files(repository, repo_type="dataset", revision=revision)
    return sorted(name.removesuffix(".zip") for name in files if name.endswith(".zip"))


@contextlib.contextmanager
def _answering(hub: Any, where: str, expected: str) -> Iterator[None]:
    """Turn any error from a request to the hub into one line."""
    try:
        yield
    except hub.errors.LocalEntryNotFoundError as error:
        raise DatasetError(f"{where}: the hub does not answer: {one_line(error)}") from error
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError) as error:
        raise ConfigError(f"{where}: expected {expected} on the hub, found: {one_line(error)}") from error
    # the libraries below the hub's client have errors of their own
    except Exception as error:
        raise DatasetError(f"{where}: the hub does not answer: {one_line(error)}") from error


def _find(hub: Any, name: str, repository: str, revision: str, endpoint: str | None) -> dict[str, Any]:
    """Return the archive's address, size and SHA-256, which the hub has for every large file."""
    where = f"{repository}/{name}.zip at {revision}"
    with _answering(hub, where, "an archive"):
        url = hub.hf_hub_url(repository, f"{name}.zip", repo_type="dataset", revision=revision, endpoint=endpoint)
        answer = hub.get_hf_file_metadata(url, endpoint=endpoint)
    etag = (answer.etag or "").lower()
    if len(etag) != 64 or answer.size is None:
        raise DatasetError(f"{where}: expected the hub to give a size and a SHA-256, found {answer.size} and {etag!r}")
    # the hub redirects to a store with a signed address; our token is only for the hub
    headers = hub.utils.build_hf_headers() if answer.location == url else {}
    return {
        "repository": repository,
        "file": f"{name}.zip",
        "revision": answer.commit_hash or revision,
        "size": answer.size,
        "sha256": etag,
        "location": answer.location,
        "headers": headers,
    }


def _transfer(archive: dict[str, Any], partial: Path, log: Callable[[str], None]) -> None:
    """Append what is missing to the partial file."""
    size = archive["size"]
    done = partial.stat().st_size if partial.exists() else 0
    if done < size:
        free = shutil.disk_usage(partial.parent).free
        if free < size - done:
            raise ConfigError(f"{partial.parent}: expected room for {size - done} bytes, found {free} free")
        words = f"{archive['repository']}/{archive['file']}: {size / 1e6:.1f} MB"
        log(f"{words}, resuming after {done / 1e6:.1f} MB" if done else words)
        request = urllib.request.Request(archive["location"], headers={"Range": f"bytes={done}-"})
        for name, value in archive["headers"].items():
            # a server that the hub redirects to must not see our token
            request.add_unredirected_header(name, value)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            # 200 means the whole file, from a server without ranges
            if answer.status != 206:
                done = 0
            with open(partial, "ab" if done else "wb") as file:
                _copy(answer, file, done, size, log)
    checksum = sha256(partial)
    if checksum != archive["sha256"]:
        partial.unlink()
        raise DatasetError(f"{archive['file']}: expected SHA-256 {archive['sha256']}, found {checksum}; start again")


def _copy(answer: Any, file: Any, done: int, size: int, log: Callable[[str], None]) -> None:
    began = logged = time.monotonic()
    first = done
    while piece := answer.read(_PIECE):
        file.write(piece)
        done += len(piece)
        if time.monotonic() - logged > 5:
            logged = time.monotonic()
            rate = (done - first) / (logged - began)
            log(f"  {done / 1e6:.1f} of {size / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s, {(size - done) / rate:.0f} s left")
    if done < size:
        raise ConnectionError("the connection was closed")


def _unpack(archive: dict[str, Any], partial: Path, target: Path) -> None:
    """Make the whole folder or nothing, and remove the archive."""
    try:
        with zipfile.ZipFile(partial) as file, replacing(target) as unpacked:
            file.extractall(unpacked)
            origin = {key: archive[key] for key in ("repository", "file", "revision", "size", "sha256")}
            (unpacked / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")
            for folder in _vaults(unpacked):
                if folder != unpacked:
                    manifest.write(folder)
        if vault.matches(os.fspath(target)):  # its manifest is next to it
            manifest.write(target)
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{archive['file']}: expected a zip archive, found: {error}") from error
    partial.unlink()


def _vaults(folder: Path) -> list[Path]:
    """Return the vaults in a folder, which may be a vault itself."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    return sorted(path for path in folders if vault.matches(os.fspath(path)))
