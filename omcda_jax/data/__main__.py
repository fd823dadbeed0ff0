"""Datasets from the command line.

    python -m omcda_jax.data verify PATH              check everything that can be checked
    python -m omcda_jax.data card PATH --out=FOLDER   describe it: card.md, card.json, card.png
    omcda-jax data card PATH --html=FILE              show it on one page: figures, and episodes to look at
    python -m omcda_jax.data convert FROM TO          write it in another format
    python -m omcda_jax.data download NAME            fetch an archive of OG-MARL, core/smac_v1/5m_vs_6m for instance

PATH is a file or folder in any format of omcda_jax.data.formats. The commands say what a foreign file does
differently, and flags correct it: --action_scale, --clip_actions, --rewards=return_to_go, --team_reward, --time_limit.
Downloads need the extra `hub` and resume where they stopped; --endpoint or HF_ENDPOINT, --repository and --revision
choose where they come from. `omcda-jax data` is the same program; only there the card can be a page.
"""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from omcda_jax.config import Repairs
from omcda_jax.data import card, formats, hub, manifest
from omcda_jax.system import exit_status, new_flags, printing, read_flags
from omcda_jax.types import ConfigError

COMMANDS = {"verify": ("PATH",), "card": ("PATH",), "convert": ("FROM", "TO"), "download": ("NAME",)}


# write_page(path, name, contents, environment or None) -> path
WritePage = Callable[[str, str, formats.Contents, str | None], str]


def main(argv: Sequence[str], write_page: WritePage | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the program's name, the command, its paths and flags.
        write_page: writes the page of --html; None refuses the flag.
    """
    return exit_status(functools.partial(_run, argv, write_page))


def _run(argv: Sequence[str], write_page: WritePage | None) -> None:
    values = _flags()
    words = read_flags(values, argv)
    if values.help or not words:
        print(f"{__doc__.strip()}\n{values.get_help()}" if values.help else __doc__.strip())
        return
    command, *paths = words
    if command not in COMMANDS or len(paths) != len(COMMANDS[command]):
        known = "; ".join(" ".join((name, *needed)) for name, needed in COMMANDS.items())
        raise ConfigError(f"expected one of {known}, found {' '.join(words)!r}")
    if values.html is not None and (command != "card" or write_page is None):
        raise ConfigError(f"--html: expected omcda-jax data card PATH --html=FILE, found {' '.join([argv[0], *words])}")
    card_of = functools.partial(describe, write_page=write_page)
    {"verify": verify, "card": card_of, "convert": convert, "download": download}[command](*paths, values)


def verify(path: str, values: Any) -> None:
    """Check a dataset (its manifest first, if there is one), and print what it contains.

    Args:
        path: the dataset.
        values: parsed flags.

    Raises:
        DatasetError, ConfigError: whatever is wrong.
    """
    began = time.monotonic()
    sums = values.manifest or manifest.find(path)
    if sums and os.path.exists(path):
        print(f"{manifest.verify(path, sums)} files match {sums}")
    dataset = _read(path, values)
    print(f"{path}: intact, format {dataset.format}, checked in {time.monotonic() - began:.1f} s")
    for key, value in dataset.metadata["statistics"].items():
        print(f"  {key:<16} {'unknown' if value is None else f'{value:.6g}'}")


def describe(path: str, values: Any, write_page: WritePage | None = None) -> None:
    """Write a dataset's card, as a folder or as a page.

    Args:
        path: the dataset.
        values: parsed flags.
        write_page: as in `main`.

    Raises:
        DatasetError, ConfigError: whatever is wrong.
    """
    dataset = _read(path, values)
    name = os.path.basename(os.path.normpath(path))
    if dataset.format != "omcda":
        dataset = dataset._replace(metadata=dataset.metadata | {"repairs": _given(values)})
    if values.html is not None:
        print(f"wrote {write_page(values.html, name, dataset, values.environment)}")
        if values.out is None:
            return
    numbers = card.describe(dataset.spec, dataset.episodes, dataset.metadata["statistics"])
    written = card.write(values.out or f"{os.path.normpath(path)}.card", name, numbers, dataset.metadata, dataset.notes)
    print(card.markdown(name, numbers, dataset.metadata, dataset.notes))
    print(f"wrote {', '.join(str(file) for file in written)}")


def convert(path: str, target: str, values: Any) -> None:
    """Write a dataset in another format.

    Args:
        path: the dataset.
        target: where to write.
        values: parsed flags.

    Raises:
        DatasetError, ConfigError: whatever is wrong.
    """
    dataset = _read(path, values)
    given = {key: values[key].value for key in ("environment", "quality") if values[key].value is not None}
    origin = {"description": f"converted from {dataset.format}"} if dataset.format != "omcda" else {}
    metadata = {**dataset.metadata, **origin, **({"repairs": _given(values)} if origin else {}), **given}
    metadata = {key: value for key, value in metadata.items() if key not in ("statistics", "spec", "digest", "format")}
    if dataset.metadata["statistics"]["win_rate"] is None:
        metadata["statistics"] = {"win_rate": None}
    lost = formats.write(target, values.format, dataset.spec, dataset.episodes, metadata)
    print(f"wrote {target}: {len(dataset.episodes.length)} episodes, format {values.format}")
    for what in lost:
        print(f"note: {target}: the format cannot store {what}")


def download(name: str, values: Any) -> None:
    """Fetch an archive from a hub and unpack it.

    Args:
        name: the archive's path in the repository.
        values: parsed flags.

    Raises:
        DatasetError, ConfigError: whatever is wrong.
    """
    where = {key: values[key].value for key in ("repository", "revision", "endpoint")}
    vaults = hub.download(name, values.out or os.path.join("datasets", where["repository"]), **where)
    if not vaults:
        print(f"note: {name}: no vault in the archive")
    for path in vaults:
        print(f"{path}: a vault; train on it with --config.data.path={path}")


def _read(path: str, values: Any) -> formats.Contents:
    dataset = formats.read(path, repairs=_repairs(values))
    for note in dataset.notes:
        print(f"note: {path}: {note}")
    return dataset


def _repairs(values: Any) -> Repairs:
    return Repairs(**{field.name: values[field.name].value for field in dataclasses.fields(Repairs)})


def _given(values: Any) -> dict[str, Any]:
    """Return the repairs as they are stored in a file's attributes."""
    return {key: value for key, value in dataclasses.asdict(_repairs(values)).items() if value is not None}


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("float", "action_scale", 1.0, "Number to divide continuous actions by.")
    define("boolean", "clip_actions", False, "Clip continuous actions to ±1.")
    define("enum", "rewards", "reward", ["reward", "return_to_go"], "What the file's rewards are.")
    define("enum", "team_reward", None, ["mean", "sum"], "How to combine rewards that differ between agents.")
    define("integer", "time_limit", None, "Treat episodes of this many steps as cut by the time limit.")
    define("string", "manifest", None, "SHA-256 checksums to compare with; by default PATH.sha256 or SHA256SUMS.")
    define("string", "out", None, "Folder of the card, by default PATH.card, or of downloads, datasets/REPOSITORY.")
    define("enum", "format", "omcda", list(formats.WRITTEN), "Format to convert to.")
    define("string", "html", None, "Write the card as one page to this file; also as a folder only if --out is given.")
    define("string", "environment", None, "Name of the environment, for the converted file or for the page's episodes.")
    define("string", "quality", None, "Name of the quality to write into the converted file.")
    define("string", "repository", hub.REPOSITORY, "Repository of datasets to download from.")
    define("string", "revision", "main", "Branch, tag or commit to download.")
    define("string", "endpoint", None, "Address of the hub or of its mirror.")
    return values


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv)))
