"""Speed on the device at hand, as one Markdown document: every ratio is measured in one run, alternately.

    python -m benchmarks.speed                                        # one core of a CPU, or the accelerator
    python -m benchmarks.speed --sections=algorithms,sizes --cores=2
    python -m benchmarks.speed --limit_s=540 --results=OUT            # begins nothing new after nine minutes
    python -m benchmarks.speed --against=PATH                         # this checkout and another one, alternating
    python -m benchmarks.speed --omiga=PATH --omiga_python=PYTHON     # the official PyTorch step and ours, alternating
    python -m benchmarks.speed --missing                              # packages that this Python lacks

    algorithms   all nine, discrete (sizes of SMAX 5m_vs_6m) and continuous (Hopper): rate, FLOPs, share of the peak of
                 matrix products, memory, compilation
    products     a hidden layer's three products alone, against the number of agents
    sizes        OMCDA and OMIGA against the number of agents and the batch
    population   trials side by side on one device
    flags        XLA's command buffers off, by default, and around loops (GPU)
    evaluation   greedy episodes of the shipped policies
    compile      OMCDA and OMIGA, cold and from the persistent cache
    start        from the command to the first update and the first evaluation, cold and warm
    devices      one trial spread over devices, and trials shared among them; on a CPU fake devices

Batch 128, networks 256-256, K 2. Numbers are median (lowest to highest). On a CPU, a process is pinned to --cores. On
one core, its CPU time counts, so other work on the machine matters little. `% of peak` refers to the fastest large
float32 product at JAX's default precision. All numbers go to RESULTS/speed_DEVICE.csv, section by section; a section
that runs again replaces its rows.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import rivals
from benchmarks.rows import put
from omcda_jax.config import require
from omcda_jax.files import require_folder
from omcda_jax.runner.frame import main as run_command
from omcda_jax.system import new_flags, printing

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIMING = ROOT / "benchmarks" / "timing.py"
COLUMNS = ("section", "case", "quantity", "value", "low", "high")
PACKAGES = (
    *("jaxmarl", "gymnax", "mujoco", "mujoco-core", "gymnasium", "gymnasium-robotics", "pettingzoo"),
    *("farama-notifications", "glfw", "h5py"),
)
ENVIRONMENTS, EPISODES = ("smax/5m_vs_6m", "mamujoco/Hopper_3x1"), (32, 256)
BUFFERS = {
    "off": "--xla_gpu_enable_command_buffer=",
    "default": "",
    "loops too": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
}
GRACE = 45  # seconds for a process to finish what it began


class Document:
    """The rows so far, on the screen and in the CSV.

    Args:
        folder: folder of the CSV; rows of other sections stay.
        limit: seconds until nothing new is started, or None.

    Attributes:
        facts: what is measured on, see `timing.facts`.
    """

    def __init__(self, folder: str, limit: float | None):
        self._folder = pathlib.Path(folder)
        self._until = time.monotonic() + (limit or float("inf"))
        self.facts: dict[str, Any] = {}

    @property
    def cpu(self) -> bool:
        """Whether there is no accelerator."""
        return self.facts["platform"] == "cpu"

    @property
    def left(self) -> float:
        """Seconds until nothing new is started."""
        return self._until - time.monotonic()

    @property
    def patience(self) -> float | None:
        """Seconds until running work is stopped, None without a limit."""
        return max(1.0, self.left + GRACE) if self.left < float("inf") else None

    def write(self, section: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print a section, and write it into the CSV in place of its old rows."""
        print(f"\n## {section}\n\n{markdown(rows)}", flush=True)
        if not any("values" in row for row in rows):
            return
        device = re.sub(r"\W+", "_", self.facts["device"]).strip("_").lower()
        path = self._folder / f"speed_{device}.csv"
        put(path, COLUMNS, flat(section, rows), lambda row: row["section"])


def flat(section: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of the CSV, one for each number."""
    found = []
    for row in rows:
        for quantity, value in row.get("values", {}).items():
            numbers = value if isinstance(value, list | tuple) else (value, "", "")
            found.append(dict(zip(COLUMNS, (section, row["case"], quantity, *numbers), strict=True)))
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each sequence of rows with the same quantities, then a line for everything that failed."""
    lines, titles = [], None
    for row in [row for row in rows if "values" in row]:
        if titles != list(row["values"]):
            titles = list(row["values"])
            lines += [""] * bool(lines) + [f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
        lines.append(f"| {row['case']} | {' | '.join(map(cell, row['values'].values()))} |")
    failed = [f"- {row['case']}: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join([*lines, *([""] if lines and failed else []), *failed])


def cell(value: Any) -> str:
    """Return a number with three digits, or all before the point; with lowest and highest if there are any."""
    if isinstance(value, list | tuple):
        middle, low, high = map(cell, value)
        return f"{middle} ({low} to {high})"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def ask(document: Document, measure: str, environment: Mapping[str, str] | None = None, **what: Any) -> list[dict]:
    """Return the rows that a process of its own measures; if it ends early, the last row says why.

    Args:
        document: the document, which has the time limit.
        measure: a function of `timing`.
        environment: variables in addition to those of this process.
        what: the function's arguments.
    """
    if document.left <= 0:
        return [{"case": measure, "failed": "no time left"}]
    asked = {"measure": measure, **({"limit_s": document.left} if document.patience else {}), **what}
    variables = python_path() | {"JAX_ENABLE_COMPILATION_CACHE": "false"} | dict(environment or {})
    try:
        done = subprocess.run(
            [sys.executable, str(TIMING), json.dumps(asked)],
            capture_output=True,
            timeout=document.patience,
            env=os.environ | variables,
        )
    except subprocess.TimeoutExpired as error:
        return [*_rows(error.stdout or b""), {"case": measure, "failed": "stopped, no time left"}]
    rows = _rows(done.stdout)
    if done.returncode:
        rows.append({"case": measure, "failed": complaint(done.stderr.decode(errors="replace"), done.returncode)})
    return rows


def _rows(output: bytes) -> list[dict]:
    return [json.loads(line) for line in output.decode().splitlines() if line.startswith("{") and line.endswith("}")]


def complaint(text: str, status: int) -> str:
    """Return the line of a process's standard error that best says why it ended."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"unknown|invalid|illegal", line, re.IGNORECASE)]
    return (telling or lines[-1:] or [f"exit status {status}"])[0][:300]


def buffers(document: Document, effort: Mapping[str, Any]) -> list[dict]:
    """XLA's command buffers; if this XLA does not know a value of the flag, only its rows fail."""
    if document.cpu:
        return [{"case": "flags", "failed": "skipped, command buffers are for GPUs"}]
    rows = []
    for name, flag in BUFFERS.items():
        wanted = {f"{algorithm}, {name}": {"algorithm": algorithm} for algorithm in ("omcda", "omiga")}
        environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
        found = ask(document, "cases", environment, wanted=wanted, **effort)
        rows += [row | {"case": f"{name} ({flag})"} if row["case"] == "cases" else row for row in found]
    return rows


def compilation(document: Document, effort: Mapping[str, Any]) -> list[dict]:
    """One training call compiled twice, by processes that share a cache."""
    rows = []
    for algorithm in ("omcda", "omiga"):
        with tempfile.TemporaryDirectory() as folder:
            asked = [ask(document, "compilation", cache(folder), algorithm=algorithm) for _ in range(2)]
        failed = [row for found in asked for row in found if "failed" in row]
        if failed:
            rows += failed
            continue
        cold, warm = (found[0]["values"]["compile s"] for found in asked)
        rows.append({"case": algorithm, "values": {"cold s": cold, "cached s": warm, "of cold": warm / cold}})
    return rows


def python_path() -> dict[str, str]:
    """Return the variable with which a process imports this checkout, and otherwise the same as this process."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def cache(folder: str) -> dict[str, str]:
    """Return the variables that make JAX keep compiled programs in a folder."""
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def devices(document: Document, effort: Mapping[str, Any]) -> list[dict]:
    """The same work on 1, 2, 4 and 8 devices, each in a process of its own."""
    rows, there = [], 8 if document.cpu else document.facts["devices"]
    if there == 1:
        return [{"case": "devices", "failed": "skipped, there is one device"}]
    for mode, trials in (("one trial", 1), ("8 trials", 8)):
        single = None
        for count in (count for count in (1, 2, 4, 8) if count <= there):
            case = {"algorithm": "omcda", "kind": "discrete", "trials": trials, "devices": count}
            name = f"{mode}, {count} device{'s' if count > 1 else ''}"
            fake = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()
            found = ask(document, "cases", {"XLA_FLAGS": fake} if document.cpu else None, wanted={name: case}, **effort)
            for row in found:
                if "values" in row:
                    rate = row["values"]["updates/s"]
                    single = single or rate[0]
                    row["values"] = {"(trial-)updates/s": rate, "of one device": rate[0] / single}
                rows.append(row | {"case": name})
    return rows


def start(document: Document, effort: Mapping[str, Any]) -> list[dict]:
    """A real run, from its command line, twice in one folder: the second finds programs in the cache."""
    rows = []
    words = ["--config=smac_5m6m", "--config.data.episodes=50", "--config.learner.updates=4"]
    words += [f"--config.learner.{key}=2" for key in ("updates_per_call", "log_every", "evaluate_every")]
    words += ["--config.learner.checkpoint_every=4", "--config.evaluation.episodes=32"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | python_path() | cache(f"{folder}/cache")
        quiet = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        collect = ["--environment=smax/5m_vs_6m", "--quality=medium", "--episodes=50"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "experiments/collect.py"), *collect], timeout=document.patience, **quiet
        )
        if done.returncode:
            return [{"case": "start", "failed": complaint(done.stderr.decode(), done.returncode)}]
        for name in ("cold", "warm"):
            if document.left <= 0:
                return [*rows, {"case": name, "failed": "no time left"}]
            line = [sys.executable, str(ROOT / "experiments/run.py"), *words, f"--workdir={folder}/{name}"]
            with tempfile.TemporaryFile() as errors, subprocess.Popen(line, **quiet | {"stderr": errors}) as process:
                found = watch(process, pathlib.Path(folder, name, "metrics.jsonl"), document.patience)
                process.wait()
                errors.seek(0)
                text = errors.read().decode(errors="replace")
            rows.append(
                {"case": name} | ({"values": found} if found else {"failed": complaint(text, process.returncode)})
            )
    return rows


def watch(process: subprocess.Popen, metrics: pathlib.Path, patience: float | None = None) -> dict[str, float]:
    """Return when a run wrote its first metrics and its first evaluation, in seconds and in CPU seconds.

    Args:
        process: the run; it is ended if it takes longer than `patience` seconds.
        metrics: the file that it writes.
        patience: seconds; None waits for its end.
    """
    began, found = time.monotonic(), {}
    events = {"first update": "updates_per_second", "first evaluation": "evaluation/return_mean"}
    while process.poll() is None:
        text = metrics.read_text() if metrics.exists() else ""
        for name, key in events.items():
            if f"{name} s" not in found and f'"{key}"' in text:
                ticks = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                worked = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
                found |= {f"{name} s": time.monotonic() - began, f"{name}, processor s": worked}
        if patience and time.monotonic() - began > patience:
            process.kill()
        time.sleep(0.02)
    return found


SECTIONS = {
    "algorithms": lambda document, effort: ask(document, "algorithms", **effort),
    "products": lambda document, effort: ask(document, "products", **effort),
    "sizes": lambda document, effort: ask(document, "sizes", **effort),
    "population": lambda document, effort: ask(document, "population", **effort),
    "flags": buffers,
    "evaluation": lambda document, effort: ask(document, "evaluation", environments=ENVIRONMENTS, episodes=EPISODES),
    "compile": compilation,
    "start": start,
    "devices": devices,
}


def missing() -> str:
    """Return which measurable packages are missing, and how to bring them here."""
    there = {name for name in PACKAGES if any(importlib.metadata.distributions(name=name))}
    lacking = [name for name in PACKAGES if name not in there]
    if not lacking:
        return "nothing is missing"
    words, version = " ".join(lacking), f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join(
        [
            f"missing: {', '.join(lacking)}",
            "where there is a network:",
            f"  pip download --dest=wheels --no-deps --only-binary=:all: --python-version={version} {words}",
            "here:",
            f"  pip install --no-index --no-deps --find-links=wheels {words}",
        ]
    )


def known_flags() -> flags.FlagValues:
    """Return the flags of the command."""
    values, define = new_flags()
    define("list", "sections", None, "some of those above; all if none is given")
    define("string", "results", "benchmarks/results", "folder of the CSV")
    define("integer", "cores", 1, "CPU cores to run on")
    define("integer", "rounds", 5, "measurements of everything")
    define("float", "seconds", 0.5, "shortest duration of one measurement")
    define("float", "limit_s", None, "seconds after which nothing new is started")
    define("string", "against", None, "another checkout to measure, interleaved with this one, instead of the sections")
    define(
        "string", "omiga", None, "a checkout of github.com/ZhengYinan-AIR/OMIGA to measure, interleaved with our OMIGA"
    )
    define("string", "omiga_python", sys.executable, "the Python that has torch")
    define("boolean", "missing", False, "only list the missing packages and how to carry them here")
    return values


def chosen(values: flags.FlagValues) -> list[str]:
    """Return the sections to measure.

    Raises:
        ConfigError: there is no such section, or a number is invalid.
    """
    require(values.cores >= 1, "--cores", "at least 1", values.cores)
    there = len(os.sched_getaffinity(0))
    require(values.cores <= there, "--cores", f"at most the {there} of this machine", values.cores)
    require(values.rounds >= 1, "--rounds", "at least 1", values.rounds)
    require(values.seconds > 0, "--seconds", "more than 0", values.seconds)
    require(values.limit_s is None or values.limit_s > 0, "--limit_s", "more than 0", values.limit_s)
    for name in values.sections or ():
        require(name in SECTIONS, "--sections", f"some of {', '.join(SECTIONS)}", name)
    return values.sections or list(SECTIONS)


def work(values: flags.FlagValues) -> None:
    """Measure what a command line asks for.

    Raises:
        ConfigError: as in `chosen` and `rivals.check`.
    """
    if values.missing:
        print(missing())
        return
    sections = chosen(values)
    rivals.check(values)
    require_folder(pathlib.Path(values.results))
    document = Document(values.results, values.limit_s)
    rows = ask(document, "facts")
    require("facts" in rows[0], "JAX", "a device to measure", rows[0].get("failed"))
    facts = document.facts = rows[0]["facts"]
    what = f"{facts['devices']} device{'s' if facts['devices'] > 1 else ''}"
    if document.cpu:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: values.cores])
        what = f"{values.cores} core{'s' if values.cores > 1 else ''}"
    print(f"# Speed of {facts['device']}, {what}, JAX {facts['jax']}", flush=True)
    effort = {"rounds": values.rounds, "seconds": values.seconds}
    if values.against:
        document.write("against", rivals.against(pathlib.Path(values.against), **effort))
    if values.omiga:
        device, python = "cpu" if document.cpu else "cuda", values.omiga_python
        path = pathlib.Path(values.omiga)
        document.write("omiga", rivals.omiga(path, python, device, values.cores, **effort))
    for section in () if values.against or values.omiga else sections:
        began = time.monotonic()
        try:
            found = SECTIONS[section](document, effort)
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            found = [{"case": section, "failed": f"{type(error).__name__}: {error}"}]
        document.write(section, found)
        print(f"\nmeasured in {time.monotonic() - began:.0f} s", flush=True)


def main(argv: Sequence[str]) -> int:
    """Run one command line and return the exit status."""
    return run_command(argv, __doc__, known_flags(), work)


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv)))
