"""Mutates valid files of every format and counts the outcomes.

    python -m benchmarks.fuzz --mutations=2000

Each mutated file is either read, and then equals a plain second reading of the same file (`layouts`), or it is refused
in one line with exit status 78. Anything else is a fault of the readers; the command prints it and exits with 1.
"""

import collections
import contextlib
import io
import itertools
import pathlib
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from typing import NamedTuple

import numpy as np
from absl import flags

from benchmarks import layouts, mutations
from benchmarks.command import main
from omcda_jax.data import formats
from omcda_jax.data.__main__ import main as command
from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.system import new_flags, printing

# signs of a Python object in a message for people
_REPR = re.compile(r"\bb'|\bb\"|Traceback| object at 0x|\*\(|<class|array\(|dtype\(|\\x")


# raised by arrays that a layout cannot store
UNWRITABLE = (KeyError, IndexError, ValueError, TypeError, OverflowError)


class Outcome(NamedTuple):
    """The outcome of one file: `read`, `refused` or `wrong`, and the message or what is wrong."""

    kind: str
    text: str


def judge(path: pathlib.Path, layout: layouts.Layout, *, harmless: bool) -> Outcome:
    """Verify a file with the command, and compare what it reads with the second reading.

    Args:
        path: the file or folder.
        layout: its format.
        harmless: True: the file must be read.
    """
    status, out, err = _verify(path)
    if status == 78:
        text = err.strip()
        if not re.fullmatch(r"error: .{1,900}", text) or _REPR.search(text):
            return Outcome("wrong", f"refused, but not in one plain line: {text[:600]}")
        return Outcome("wrong", f"refused, though nothing is wrong: {text}") if harmless else Outcome("refused", text)
    if status != 0 or err:
        return Outcome("wrong", f"status {status}: {err[-1500:]}")
    if _REPR.search(out):
        return Outcome("wrong", f"a Python object in the notes: {out}")
    found = formats.read(path).episodes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = layout.read(layout.decode(path))
    except Exception as error:
        return Outcome("wrong", f"read, though it cannot be: {type(error).__name__} {error}; {out[:300]}")
    different = _difference(found, expected)
    return Outcome("wrong", f"read differently from what it says: {different}") if different else Outcome("read", out)


def _verify(path: pathlib.Path) -> tuple[int | str, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            status = command(["data", "verify", str(path)])
        except Exception:
            return "traceback", out.getvalue(), traceback.format_exc()
    return status, out.getvalue(), err.getvalue()


def _difference(found: Episodes, expected: list[layouts.Episode]) -> str:
    if len(found.length) != len(expected):
        return f"{len(found.length)} episodes, not {len(expected)}"
    for e, (end, episode) in enumerate(zip(final_rows(found.length), expected, strict=True)):
        begin = end - found.length[e]
        steps, rows = slice(begin, end), slice(begin, end + 1)
        pairs = {
            "length": (found.length[e], len(episode.reward)),
            "terminated": (found.terminated[e], episode.terminated),
            "obs": (found.obs[rows], episode.obs),
            "state": (found.global_state[rows], episode.state),
            "action": (found.action[steps], episode.action),
            "reward": (found.reward[steps], episode.reward),
        }
        if episode.avail is not None:
            # the last row of an ended episode has no action
            legal = slice(begin, end + (not episode.terminated))
            pairs["avail"] = (found.avail[legal], episode.avail[: found.length[e] + (not episode.terminated)])
        for key, (mine, other) in pairs.items():
            mine, other = np.float64(mine), np.float64(np.float32(other))
            if mine.shape != other.shape or not np.array_equal(mine, other):
                return f"{key} of episode {e}"
    return ""


def attempt(name: str, mutation, seed: tuple[int, ...], folder: pathlib.Path) -> Outcome:
    """Make one file, mutate it, and judge it.

    Args:
        name: name of the layout.
        mutation: one of `mutations.ARRAYS` or `mutations.FILES`.
        seed: seed of the file and the mutation.
        folder: an empty folder.
    """
    rng, layout, path = np.random.default_rng(seed), layouts.LAYOUTS[name], folder / "data"
    arrays = layout.draw(rng)
    if mutation in mutations.ARRAYS:
        mutation(rng, arrays)
    layout.write(path, arrays)
    if mutation in mutations.FILES:
        mutation(rng, path)
    # the project's own format has only one encoding
    harmless = mutation in mutations.HARMLESS and (name, mutation) != ("omcda", mutations.same_numbers)
    return judge(path, layout, harmless=harmless)


def fuzz(count: int, seed: int, keep: str | None = None) -> dict[tuple[str, str], collections.Counter]:
    """Try mutations and return how many were read, refused and wrong by format and kind of fault.

    Args:
        count: number of mutations.
        seed: seed of all mutations.
        keep: folder for wrong files, or None.
    """
    kinds = (*mutations.ARRAYS, *mutations.FILES)
    pairs = [(name, kind) for kind in kinds for name in layouts.LAYOUTS]
    table = collections.defaultdict(collections.Counter)
    judged = 0
    for number in itertools.count():
        if judged == count:
            return table
        name, mutation = pairs[number % len(pairs)]
        folder = pathlib.Path(tempfile.mkdtemp())
        try:
            outcome = attempt(name, mutation, (seed, number), folder)
        except UNWRITABLE:
            shutil.rmtree(folder)
            continue
        judged += 1
        table[name, mutation.__name__][outcome.kind] += 1
        if outcome.kind == "wrong":
            print(f"wrong: mutation {number}, {name}, {mutation.__name__}: {outcome.text}", file=sys.stderr)
            if keep:
                shutil.copytree(folder, pathlib.Path(keep) / str(number), dirs_exist_ok=True)
        shutil.rmtree(folder)


def work(values: flags.FlagValues) -> bool:
    """Print a table by format and a table by kind of fault; return whether nothing was wrong."""
    table = fuzz(values.mutations, values.seed, values.keep)
    columns = ("read", "refused", "wrong")
    for place, title in enumerate(("format", "fault")):
        print(f"| {title} | mutations | read correctly | refused in one line | anything else |\n|---|---|---|---|---|")
        for key in dict.fromkeys(pair[place] for pair in table):
            counts = sum((counter for pair, counter in table.items() if pair[place] == key), collections.Counter())
            print(f"| {key.replace('_', ' ')} | {counts.total()} | {' | '.join(str(counts[c]) for c in columns)} |")
        print()
    total = sum(table.values(), collections.Counter())
    print(
        f"{total.total()} mutations: {total['read']} read correctly, {total['refused']} refused, {total['wrong']} wrong"
    )
    return not total["wrong"]


if __name__ == "__main__":
    FLAGS, define = new_flags()
    define("integer", "mutations", 2000, "Mutated files to try, shared evenly among formats and kinds of fault.")
    define("integer", "seed", 0, "Another seed makes other files.")
    define("string", "keep", None, "Folder for copies of the files that failed.")
    sys.exit(printing(lambda: main(sys.argv, __doc__, FLAGS, work)))
