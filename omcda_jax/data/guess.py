"""What an unreadable file or folder most likely is, in words, and what to do with it."""

import json
import os
import re
import zipfile
from collections.abc import Iterable

_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a single NumPy array; name the folder that it is in",
    b"\x1f\x8b": "gzip-compressed data; unpack them with gunzip or tar",
    b"BZh": "bzip2-compressed data; unpack them",
    b"\xfd7zXZ\x00": "xz-compressed data; unpack them",
    b"\x28\xb5\x2f\xfd": "zstd-compressed data; unpack them",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"PAR1": "a Parquet table, which is not a supported format",
    b"ARROW1": "an Arrow table, which is not a supported format",
    b"SQLite format 3": "an SQLite database",
    b"version https": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"CDF": "a NetCDF file",
    b"MATLAB": "a MATLAB file",
}
_CHECKPOINT = {"_CHECKPOINT_METADATA", "_METADATA", "commit_success.txt", "ocdbt.process_0"}
_BESIDE = (".md", ".txt", ".json", ".yaml", ".yml", ".sha256", ".csv", ".png")
_RUN = {"config.json", "metrics.jsonl", "checkpoints"}


def describe_file(path: str | os.PathLike) -> str:
    """Return what a file seems to contain, by its first bytes.

    Args:
        path: the file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return _archive(path)
    for magic, words in _MAGIC.items():
        if start.startswith(magic):
            return words
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if start[0] == 0x80 and start[1] in range(2, 6):
        return "a pickle, which is a program and is not run; save its arrays with numpy.save, one file each"
    return _text(start)


def _archive(path: str | os.PathLike) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:
        return "a damaged zip archive (.npz, .pt, .zip)"
    unpack = f"unpack it with python -m zipfile -e {os.path.basename(path)} FOLDER and name the folder"
    if names and all(name.endswith(".npy") for name in names):
        return f"an archive of NumPy arrays, .npz ({shown(name.removesuffix('.npy') for name in names)}); {unpack}"
    return f"a zip archive ({shown(names)}); {unpack}"


def _text(start: bytes) -> str:
    try:
        words = start.decode("utf-8")
    except UnicodeDecodeError as error:
        # the last character may be incomplete
        if error.start < len(start) - 3:
            return "binary data of no known kind"
        words = start[: error.start].decode("utf-8")
    if any(ord(letter) < 32 and letter not in "\n\r\t" for letter in words):
        return "binary data of no known kind"
    words = " ".join(words.split())
    if words.startswith("<"):
        return "a web page? download the file itself"
    kind = "JSON" if words[:1] in ("{", "[") else "text"
    return f"{kind} that begins with '{words[:30]}'"


def describe_folder(path: str | os.PathLike) -> str:
    """Return what a folder seems to be, by the names in it.

    Args:
        path: the folder.
    """
    names = visible(path)
    if is_checkpoint(path):
        return "a checkpoint that orbax wrote, not a dataset"
    if len(names & _RUN) > 1:
        return "the directory of a training run, not a dataset"
    if any(name.endswith((".tfrecord", ".tfrecords")) for name in names):
        return "TFRecord files, OG-MARL's older format; take its vaults, or save the arrays with numpy.save"
    if any(name.endswith(".npz") for name in names):
        return f".npz archives ({shown(names)}); unpack one and name its folder"
    return shown(names)


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Return whether a folder is an orbax checkpoint, or a part of one."""
    return bool(visible(path) & _CHECKPOINT) or os.path.basename(os.path.normpath(path)).startswith("ocdbt.process_")


def is_minari(path: str | os.PathLike) -> bool:
    """Return whether a folder is a Minari dataset's `data` folder, by its metadata."""
    return "minari_version" in _metadata(path) or os.path.isfile(os.path.join(path, "main_data.hdf5"))


def describes_arrays(path: str | os.PathLike) -> bool:
    """Return whether a folder's metadata.json is a vault's."""
    return "structure_shape" in _metadata(path)


def _metadata(path: str | os.PathLike) -> dict:
    try:
        with open(os.path.join(path, "metadata.json"), encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def visible(path: str | os.PathLike) -> set[str]:
    """Return the names in a folder except hidden ones; none if it is not a folder."""
    return {name for name in os.listdir(path) if not name.startswith(".")} if os.path.isdir(path) else set()


def parts(path: str | os.PathLike) -> list[str]:
    """Return the paths of a folder's data files (no notes or checksums) in the natural order of their names.

    Args:
        path: the folder.
    """
    natural = lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
    names = (name for name in visible(path) if not name.endswith(_BESIDE) and not name.startswith(("README", "SHA256")))
    files = (os.path.join(path, name) for name in sorted(names, key=lambda name: (natural(name), name)))
    return [file for file in files if os.path.isfile(file)]


def shown(names: Iterable[str]) -> str:
    """Return the first eight of some names, sorted, as text."""
    names = sorted(names)
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" or "nothing"


def value(found: object) -> str:
    """Return a value from a file as error messages show it: text in quotes, large or binary values by their kind.

    Args:
        found: what was read.
    """
    if isinstance(found, str):
        return repr(found[:80])
    if found is None or isinstance(found, bool | int | float):
        return str(found)
    if isinstance(found, bytes):
        return f"{len(found)} bytes"
    shape = getattr(found, "shape", None)
    kind = type(found).__name__
    return f"{kind} of shape {tuple(shape)}" if shape is not None else f"a {kind}"
