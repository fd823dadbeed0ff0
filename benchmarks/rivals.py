"""Two processes that measure alternately: this checkout and another one, or this one and the official PyTorch OMIGA."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from absl import flags

from benchmarks.timing import spread
from omcda_jax.config import require
from omcda_jax.types import ConfigError

HERE = pathlib.Path(__file__).resolve().parent
UPDATES = 10  # updates per call


class Worker:
    """A process that measures on request; a context manager.

    Args:
        line: its command line; the process prints the names of what it measures, and then answers every line.
        package: the checkout from which it imports the package, or None.

    Raises:
        ConfigError: the process ended; the message has the last line of its standard error.
    """

    def __init__(self, line: Sequence[str], package: pathlib.Path | None = None):
        variables = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        variables |= {"PYTHONPATH": str(package)} if package else {}
        self._line, self._errors = line, tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(line, text=True, env=os.environ | variables, **pipes)

    def __enter__(self) -> "Worker":
        self._answer()
        return self

    def __exit__(self, *unused: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def rate(self, name: str, seconds: float) -> float:
        """Return updates per second of one of the names, over the given time."""
        print(json.dumps([name, seconds]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        while text := self._process.stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(text)  # other code may print too
        self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        self.__exit__()
        raise ConfigError(f"{' '.join(self._line[:3])} ended: {last[:300]}")


def ours(checkout: pathlib.Path, algorithms: Sequence[str], kinds: Sequence[str]) -> Worker:
    """Return a worker with the package of a checkout, measured by this checkout's `timing`."""
    asked = {"measure": "turns", "algorithms": list(algorithms), "kinds": list(kinds), "updates": UPDATES}
    return Worker([sys.executable, str(HERE / "timing.py"), json.dumps(asked)], checkout)


def check(values: flags.FlagValues) -> None:
    """Check that the checkouts of a command line exist, and the Python of one.

    Raises:
        ConfigError: they do not exist.
    """
    for flag, file in (("against", "omcda_jax/__init__.py"), ("omiga", "algos/OMIGA.py")):
        path = values[flag].value
        there = path is None or pathlib.Path(path, file).is_file()
        require(there, f"--{flag}", f"a checkout with {file}", path)
    python = values.omiga_python
    require(values.omiga is None or shutil.which(python), "--omiga_python", "a Python that can be started", python)


def alternate(
    one: Worker, other: Worker, pairs: Sequence[tuple[str, str]], rounds: int, seconds: float
) -> list[list[tuple[float, float]]]:
    """Return for each pair of names the rates of both workers by round; they take turns in going first."""
    found = [[] for _ in pairs]
    for number in range(rounds + 1):  # the first round is a warm-up
        for (name, its), rates in zip(pairs, found, strict=True):
            turns = [(one, name), (other, its)]
            measured = [worker.rate(what, seconds) for worker, what in (turns if number % 2 else turns[::-1])]
            if number:
                rates.append(tuple(measured if number % 2 else measured[::-1]))
    return found


def against(path: pathlib.Path, rounds: int, seconds: float) -> list[dict]:
    """Return rows of OMCDA and OMIGA in this checkout and in another."""
    everything = (("omcda", "omiga"), ("discrete", "continuous"))
    names = [f"{name}, {kind}" for kind in everything[1] for name in everything[0]]
    with ours(HERE.parent, *everything) as here, ours(path.resolve(), *everything) as there:
        found = alternate(here, there, [(name, name) for name in names], rounds, seconds)
    rows = []
    for name, rates in zip(names, found, strict=True):
        values = {"updates/s": spread([a for a, _ in rates]), "against": spread([b for _, b in rates])}
        rows.append({"case": name, "values": values | {"ratio": spread([a / b for a, b in rates])}})
    return rows


def omiga(path: pathlib.Path, python: str, device: str, cores: int, rounds: int, seconds: float) -> list[dict]:
    """Return rows of the official step and of ours on the sizes of Hopper."""
    official = Worker([python, str(HERE / "omiga.py"), str(path.resolve()), device, str(cores)])
    pairs = [(f"{name}, continuous", "official") for name in ("omiga", "omcda")]
    with official, ours(HERE.parent, ["omiga", "omcda"], ["continuous"]) as own:
        found = alternate(own, official, pairs, rounds, seconds)
    rows = []
    for (name, _), rates in zip(pairs, found, strict=True):
        values = {"ms": spread([1e3 / a for a, _ in rates]), "official OMIGA ms": spread([1e3 / b for _, b in rates])}
        rows.append({"case": name, "values": values | {"times as fast": spread([a / b for a, b in rates])}})
    return rows
