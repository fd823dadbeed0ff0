"""Checksums of data: manifests as sha256sum writes them, one line `<SHA-256>  <path>` per file."""

import os
import re
from pathlib import Path

from omcda_jax.files import replacing, sha256
from omcda_jax.types import DatasetError


def find(path: str | os.PathLike) -> Path | None:
    """Return the manifest of a dataset: FILE.sha256 next to it, or SHA256SUMS in the folder; None if there is none.

    Args:
        path: a file or folder.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    candidates = (path.with_name(f"{path.name}.sha256"), folder / "SHA256SUMS")
    return next((file for file in candidates if file.is_file()), None)


def verify(path: str | os.PathLike, manifest: str | os.PathLike) -> int:
    """Compare every file of a dataset with its line in a manifest; paths are relative to the manifest's folder.

    Args:
        path: a file or folder.
        manifest: the file of checksums.

    Returns:
        How many files were compared.

    Raises:
        DatasetError: a file is missing, not listed, or different; the manifest is missing or is not a manifest.
    """
    path, manifest = Path(path), Path(manifest).absolute()
    listed = _read(manifest)
    files = (
        sorted(file for file in path.absolute().rglob("*") if file.is_file()) if path.is_dir() else [path.absolute()]
    )
    there = {os.path.relpath(file, manifest.parent): file for file in files if file != manifest}
    inside = os.path.relpath(path.absolute(), manifest.parent)
    for name in listed:
        below = inside == "." or name == inside or name.startswith(f"{inside}{os.sep}")
        if below and name not in there:
            raise DatasetError(f"{path}: {name}: expected a file, as {manifest} lists it, found nothing there")
    for name, file in there.items():
        if name not in listed:
            raise DatasetError(f"{path}: {name}: expected a line in {manifest}, found none")
        checksum = sha256(file)
        if checksum != listed[name]:
            raise DatasetError(
                f"{path}: {name}: expected SHA-256 {listed[name]}, as {manifest} lists it, found {checksum}"
            )
    return len(there)


def verify_beside(path: str | os.PathLike) -> Path | None:
    """Compare a dataset with the checksums in PATH.sha256 and return that file, or None if there is none.

    For a single file, whatever tool wrote the checksum, it only has to be in there.

    Args:
        path: a file or folder.

    Raises:
        DatasetError: a file differs; of a folder, also as in `verify`.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.sha256")
    if not beside.is_file():
        return None
    if path.is_dir():
        verify(path, beside)
        return beside
    listed = re.findall(r"\b[0-9a-f]{64}\b", beside.read_text(errors="replace").lower())
    if not listed:
        return None
    checksum = sha256(path)
    if checksum not in listed:
        raise DatasetError(f"{path}: expected SHA-256 {listed[0]}, as {beside} says, found {checksum}")
    return beside


def write(path: str | os.PathLike) -> Path:
    """Write PATH.sha256, the manifest that `find` finds.

    Args:
        path: a file or folder.

    Returns:
        The manifest.
    """
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    target = path.with_name(f"{path.name}.sha256")
    lines = [f"{sha256(file)}  {file.relative_to(path.parent)}\n" for file in files]
    with replacing(target) as partial:
        partial.write_text("".join(lines))
    return target


def _read(manifest: Path) -> dict[str, str]:
    try:
        lines = manifest.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{manifest}: expected a file of checksums, found: {error}") from error
    listed = {}
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition(" ")
        # sha256sum marks text files by a second blank, and binary files by a star
        name = name[1:]
        if len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef") or not name:
            raise DatasetError(f"{manifest}: line {number}: expected '<SHA-256>  <path>', found {line[:80]!r}")
        listed[os.path.normpath(name)] = digest.lower()
    return listed
