"""What `benchmarks.speed` measures inside one process: interleaved training calls, products and evaluations.

    python benchmarks/timing.py '{"measure": "sizes", ...}'    # prints one JSON object per line

It imports nothing from `benchmarks`, so PYTHONPATH chooses the checkout with the package to measure. If the process has
one core of a CPU, seconds are its CPU time, so other work on the machine matters little; otherwise they are wall-clock
seconds.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax import ALGORITHMS, EnvSpec, data, system
from omcda_jax.learner import Layout, initial_state, make_train_step

# agents, observation, state, actions, discrete: SMAX 5m_vs_6m and MuJoCo Hopper 3x1
SIZES = {"discrete": (5, 92, 120, 11, True), "continuous": (3, 14, 17, 1, False)}
# critics and policies learn from the first update
SETTINGS = {"omcda": {"critic_warmup": 0, "num_samples": 2}}
EPISODES, LENGTH = 100, 40
AGENTS, BATCHES = (3, 8, 32, 128), (64, 256, 1024, 4096)
Value = float | tuple[float, float, float]  # one number, or median, lowest, highest


@dataclasses.dataclass(frozen=True)
class Case:
    """One training call: what is trained, with which sizes, and on which devices.

    Attributes:
        algorithm: its name.
        kind: kind of actions, a key of SIZES.
        agents: N; 0: as many as the task has.
        batch: B.
        trials: trials of a population; 1: a single trial.
        devices: number of devices that share a single trial's batch or a population's trials.
        length: updates per call; 0: chosen from the sizes.
    """

    algorithm: str
    kind: str = "continuous"
    agents: int = 0
    batch: int = 128
    trials: int = 1
    devices: int = 1
    length: int = 0

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        agents, *others = SIZES[self.kind]
        return EnvSpec(self.agents or agents, *others)

    @property
    def updates(self) -> int:
        """Updates per call: enough that the cost of starting does not matter, but only about a second's worth."""
        if self.length:
            return self.length
        if jax.default_backend() != "cpu":
            return max(5, min(100, 400_000 // (self.spec.num_agents * self.batch * self.trials)))
        return max(2, min(40, 30_000 // (self.spec.num_agents * self.batch * self.trials)))


@dataclasses.dataclass
class Program:
    """A compiled training call, and the state it has reached.

    Attributes:
        call: `(state, dataset) -> (state, report)`; donates the state.
        state, dataset: its arguments.
        updates: updates per call, of all trials together.
        flops: FLOPs of one update of one trial, None if XLA does not count them.
        megabytes: arguments, results and temporary memory.
        compile_seconds: seconds of lowering and compiling.
    """

    call: Callable[..., Any]
    state: Any
    dataset: Any
    updates: int
    flops: float | None
    megabytes: float
    compile_seconds: float

    def rate(self, seconds: float) -> float:
        """Return updates per second, over calls that fill the given time."""

        def once():
            self.state, report = self.call(self.state, self.dataset)
            jax.block_until_ready(report)

        return per_second(once, self.updates, seconds)


def per_second(once: Callable[[], Any], amount: float, seconds: float) -> float:
    """Return the amount per second, over calls that fill the given time; each call does the same amount."""
    done, clock = 0.0, clock_here()
    began = clock()
    while True:
        once()
        done += amount
        passed = clock() - began
        if passed >= seconds:
            return done / passed


def clock_here() -> Callable[[], float]:
    """Return the clock to measure with: CPU time on one core of a CPU, otherwise wall-clock time."""
    single = jax.default_backend() == "cpu" and len(os.sched_getaffinity(0)) == 1
    return time.process_time if single else time.perf_counter


def compiler_options() -> dict[str, Any]:
    """Return the options that a run compiles with; empty if the measured checkout has none."""
    of_platform = getattr(system, "compiler_options", lambda platform: {})
    return of_platform(jax.default_backend())


def random_dataset(spec: EnvSpec) -> data.Dataset:
    """Return whole episodes of noise with all actions legal."""
    random = np.random.default_rng(0)
    rows = EPISODES * (LENGTH + 1)
    final = np.arange(LENGTH, rows, LENGTH + 1)
    agents = (rows, spec.num_agents)
    reward = random.random(rows).astype(np.float32)
    action = random.uniform(-0.9, 0.9, (*agents, spec.action_dim)).astype(np.float32)
    if spec.discrete:
        action = random.integers(spec.action_dim, size=agents, dtype=np.int32)
    action[final], reward[final] = 0, 0
    episodes = data.Episodes(
        obs=random.standard_normal((*agents, spec.obs_dim), np.float32),
        global_state=random.standard_normal((rows, spec.state_dim), np.float32),
        avail=np.ones((*agents, spec.action_dim), bool),
        action=action,
        reward=reward,
        length=np.full(EPISODES, LENGTH, np.int32),
        terminated=np.ones(EPISODES, bool),
        won=np.zeros(EPISODES, bool),
    )
    return data.from_arrays(spec, episodes)


def prepare(case: Case) -> Program:
    """Build a state and a dataset, and compile the training call as training does."""
    algorithm, spec = ALGORITHMS[case.algorithm], case.spec
    layout = Layout(tuple(jax.devices()[: case.devices]), population=case.trials > 1)
    with _on_cpu():  # hundreds of small programs, for which an accelerator's compiler takes seconds
        dataset = random_dataset(spec)
        state = initial_state(algorithm, 0, spec, algorithm.config(**SETTINGS.get(case.algorithm, {})))
        if case.trials > 1:
            keys = jax.random.split(state.key, case.trials)
            state = jax.tree.map(lambda leaf: jnp.stack([leaf] * case.trials), state).replace(key=keys)
    if layout.spread:
        state, dataset = layout.place(state), layout.place_dataset(dataset)
    else:
        state, dataset = jax.device_put((state, dataset), jax.devices()[0])
    step = make_train_step(algorithm, data.sample, case.batch, case.updates, layout)
    clock = clock_here()
    began = clock()
    lowered = step.lower(state, dataset)
    compiled = lowered.compile(compiler_options())
    seconds = clock() - began
    flops = None if layout.spread else count_flops(lowered, compiled)
    side_by_side = 1 if jax.default_backend() == "cpu" else case.trials  # on a CPU trials are a loop, counted once
    return Program(
        compiled,
        state,
        dataset,
        case.updates * case.trials,
        flops and flops / side_by_side,
        peak_megabytes(compiled),
        seconds,
    )


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = None
    with jax.default_device(device):
        yield


def count_flops(lowered: Any, compiled: Any) -> float | None:
    """Return the FLOPs of one update: XLA counts the body of a loop once.

    On an accelerator the program is counted before optimisation, which gives about a tenth too much: after it, products
    are library calls, which count as nothing.
    """
    try:
        counts = (compiled if jax.default_backend() == "cpu" else lowered).cost_analysis()
        return (counts[0] if isinstance(counts, list) else counts)["flops"]
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError):
        return None


def peak_megabytes(compiled: Any) -> float:
    """Return the peak memory of a compiled call, or nan if XLA does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return float("nan")
    total = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return (total - found.alias_size_in_bytes) / 1e6


class LayerProduct:
    """One of the products of a hidden layer, repeated.

    Args:
        form: "forward" x w, "inputs" g w' for the gradient of its inputs, or "weights" x' g for that of its weights,
            written as in JAX's derivative, because XLA compiles other forms differently.
        rows: rows of x and g, agents times batch.
        width: width of x, g and w.
    """

    FORMS: ClassVar = {
        "forward": lambda x, w: x @ w,
        "inputs": lambda g, w: g @ w.T,
        "weights": lambda x, g: (g.T @ x).T,
    }

    def __init__(self, form: str, rows: int, width: int = 256):
        self._length = max(20, 20_000 // rows)  # so many that the copy at the start of a call does not matter
        self._flops = 2.0 * rows * width * width * self._length
        summed = rows if form == "weights" else width
        noise = lambda place, *shape: jax.random.normal(jax.random.key(place), shape) / summed**0.5  # stays finite
        self._pair = noise(0, rows, width), noise(1, summed, width)

        def once(_, pair):
            product = jax.lax.optimization_barrier(self.FORMS[form](*pair))  # all of it is needed
            # both change, as in training; otherwise XLA would compute work on a constant only once
            return tuple(operand.at[0].set(product[0]) for operand in pair)

        self._chain = jax.jit(lambda pair: jax.lax.fori_loop(0, self._length, once, pair))

    def rate(self, seconds: float) -> float:
        """Return FLOP/s over at least the given time."""
        return per_second(lambda: jax.block_until_ready(self._chain(self._pair)), self._flops, seconds)


class Products:
    """Products of float32 matrices at JAX's default precision, as in the learner: the peak to compare with."""

    def __init__(self):
        large = jax.default_backend() != "cpu"
        self._length, shapes = 10, [(8192, 8192), (16384, 4096)] if large else [(1024, 1024), (512, 512), (384, 256)]
        # one after the other in a loop, as in training, so starting them costs nothing
        self._chain = jax.jit(lambda x, y: jax.lax.fori_loop(0, self._length, lambda _, x: x @ y, x))
        # noise with a size that stays: accelerators multiply zeros and ones faster
        noise = lambda *shape: jax.random.normal(jax.random.key(0), shape)
        self._pairs = [(noise(rows, width), noise(width, width) / width**0.5) for rows, width in shapes]
        self._pairs = [max(self._pairs, key=lambda pair: self._speed(pair, 0.1))]

    def rate(self, seconds: float) -> float:
        """Return FLOP/s of the fastest shape over the given time."""
        return self._speed(self._pairs[0], seconds)

    def _speed(self, pair, seconds):
        x, y = pair
        once = lambda: jax.block_until_ready(self._chain(x, y))
        once()
        return per_second(once, 2.0 * x.size * y.shape[1] * self._length, seconds)


class Reporter:
    """Prints rows and keeps track of time.

    Args:
        seconds: seconds until no new work is begun.
    """

    def __init__(self, seconds: float):
        self._began, self._seconds = time.monotonic(), seconds

    def over(self, share: float = 1.0) -> bool:
        """Return whether a share of the time has passed."""
        return time.monotonic() - self._began > share * self._seconds

    def row(self, case: str, values: Mapping[str, Value | None]) -> None:
        """Print one row: numbers by name, without None."""
        kept = {name: value for name, value in values.items() if value is not None}
        print(json.dumps({"case": case, "values": kept}), flush=True)

    def fail(self, case: str, why: BaseException | str) -> None:
        """Print that a row failed."""
        text = " ".join(str(why).split())[:300] or type(why).__name__
        print(json.dumps({"case": case, "failed": text}), flush=True)


def prepare_all(cases: Mapping[str, Case], report: Reporter) -> dict[str, Program]:
    """Compile all cases, on an accelerator in parallel; those that fail or are too late are reported."""

    def one(case: Case) -> Program:
        if report.over(0.6):  # the compiled cases still have to be measured
            raise TimeoutError("no time left")
        return prepare(case)

    workers = 1 if jax.default_backend() == "cpu" else min(len(cases), os.cpu_count() or 1)
    found = {}
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = {name: pool.submit(one, case) for name, case in cases.items()}
        for name, future in waiting.items():
            try:
                found[name] = future.result()
            except Exception as error:
                report.fail(name, error)
    return found


def in_turns(meters: Mapping[str, Any], rounds: int, seconds: float, report: Reporter) -> list[dict[str, float]]:
    """Measure all, interleaved, so that a slow moment affects all of them.

    Args:
        meters: objects with a method `rate(seconds)`, by name.
        rounds: number of rounds; fewer if time runs out, and what is not measured by then has failed.
        seconds: least time of one measurement.
        report: told which meters fail; they are left out from then on.

    Returns:
        By round, the rates of the meters that never failed.
    """
    alive, found = dict(meters), []
    for number in range(rounds + 1):  # the first round is a warm-up
        if number > 1 and report.over():
            break
        rates = {}
        for name in list(alive) if number % 2 else list(alive)[::-1]:
            try:
                if number == 1 and report.over():
                    raise TimeoutError("no time left")
                rates[name] = alive[name].rate(seconds if number else 0.0)
            except Exception as error:
                report.fail(name, error)
                del alive[name]
        if number:
            found.append(rates)
    return [{name: rates[name] for name in alive} for rates in found]


def spread(values: Any) -> tuple[float, float, float]:
    """Return the median, the lowest and the highest."""
    values = list(values)
    return statistics.median(values), min(values), max(values)


def algorithms(report: Reporter, *, rounds: int, seconds: float, names: list[str] | None = None) -> None:
    """All algorithms on both kinds of action: rates, work, share of the peak, memory, compilation."""
    pairs = [(kind, name) for kind in SIZES for name in names or ALGORITHMS]
    cases = {f"{name}, {kind}": Case(name, kind) for kind, name in pairs}
    programs = prepare_all(cases, report)
    found = in_turns({"matrix product": Products(), **programs}, rounds, seconds, report)
    if "matrix product" not in found[0]:
        return
    for name, program in programs.items():
        if name not in found[0]:
            continue
        base, flops = f"omiga, {cases[name].kind}", program.flops
        shares = flops and spread(100 * flops * one[name] / one["matrix product"] for one in found)
        values = {
            "updates/s": spread(one[name] for one in found),
            "of OMIGA": spread(one[name] / one[base] for one in found) if base in found[0] else None,
            "MFLOP": flops and flops / 1e6,
            "GFLOP/s": flops and spread(one[name] * flops / 1e9 for one in found),
            "% of peak": shares,
            "MB": program.megabytes,
            "compile s": program.compile_seconds if jax.default_backend() == "cpu" else None,
        }
        report.row(name, values)
    report.row("matrix product", {"GFLOP/s": spread(one["matrix product"] / 1e9 for one in found)})


def sizes(report: Reporter, *, rounds: int, seconds: float) -> None:
    """Time per update of OMCDA and OMIGA, against agents and batch."""
    cases = {}
    for name in ("omcda", "omiga"):
        cases |= {f"{name}, {agents} agents": Case(name, agents=agents) for agents in AGENTS}
        cases |= {f"{name}, batch {batch}": Case(name, batch=batch) for batch in BATCHES}
    found = in_turns(prepare_all(cases, report), rounds, seconds, report)
    for name in cases:
        if name in found[0]:
            base = f"omiga{name[5:]}"
            ratio = spread(one[base] / one[name] for one in found) if base in found[0] else None
            report.row(name, {"ms": spread(1e3 / one[name] for one in found), "of OMIGA's": ratio})
    grown = AGENTS[1:]
    for name in ("omcda", "omiga"):
        keys = [f"{name}, {agents} agents" for agents in grown]
        if all(key in found[0] for key in keys):
            slopes = [np.polyfit(np.log(grown), [-np.log(one[key]) for key in keys], 1)[0] for one in found]
            report.row(f"{name}, {grown[0]} to {grown[-1]} agents", {"exponent": spread(map(float, slopes))})


def products(report: Reporter, *, rounds: int, seconds: float) -> None:
    """FLOP/s of a hidden layer's three products, against the number of agents at batch 128."""
    name_of = lambda form, agents: f"{agents} agents, {form}"
    meters = {name_of(form, n): LayerProduct(form, 128 * n) for n in AGENTS for form in LayerProduct.FORMS}
    found = in_turns(meters, rounds, seconds, report)
    for agents in AGENTS:
        names = {form: name_of(form, agents) for form in LayerProduct.FORMS}
        measured = {form: name for form, name in names.items() if name in found[0]}
        if measured:
            rates = {f"{form} GFLOP/s": spread(one[name] / 1e9 for one in found) for form, name in measured.items()}
            report.row(f"{agents} agents", rates)


def population(report: Reporter, *, rounds: int, seconds: float, algorithm: str = "omcda") -> None:
    """Trial-updates of a population against its size."""
    counts = [2**power for power in range(4 if jax.default_backend() == "cpu" else 9)]
    name_of = lambda trials: f"{algorithm}, {trials} trial{'s' if trials > 1 else ''}"
    # if trials run one after another, each does as many updates per call as a single trial
    length = Case(algorithm, "discrete").updates if jax.default_backend() == "cpu" else 0
    cases = {name_of(trials): Case(algorithm, "discrete", trials=trials, length=length) for trials in counts}
    found = in_turns(prepare_all(cases, report), rounds, seconds, report)
    single = name_of(1)
    for trials, name in zip(counts, cases, strict=True):
        if found and name in found[0]:
            costs = spread(trials * one[single] / one[name] for one in found) if single in found[0] else None
            report.row(name, {"trial-updates/s": spread(one[name] for one in found), "of one trial's time": costs})


def cases(report: Reporter, *, rounds: int, seconds: float, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Updates per second of single cases, by name."""
    programs = prepare_all({name: Case(**case) for name, case in wanted.items()}, report)
    found = in_turns(programs, rounds, seconds, report)
    for name in found[0] if found else ():
        report.row(name, {"updates/s": spread(one[name] for one in found)})


def compilation(report: Reporter, *, algorithm: str) -> None:
    """Compile one training call."""
    program = prepare(Case(algorithm))
    report.row(algorithm, {"compile s": program.compile_seconds})


def turns(report: Reporter, *, algorithms: list[str], kinds: list[str], updates: int) -> None:
    """Answer every line of standard input, a name and seconds, with updates per second: a worker of `rivals`."""
    programs = {f"{name}, {kind}": prepare(Case(name, kind, length=updates)) for kind in kinds for name in algorithms}
    print(json.dumps(list(programs)), flush=True)
    for line in sys.stdin:
        name, seconds = json.loads(line)
        print(programs[name].rate(seconds), flush=True)


def evaluation(report: Reporter, *, environments: list[str], episodes: list[int]) -> None:
    """Seconds of greedy episodes of the shipped policies of medium quality, the first call and the second."""
    from omcda_jax import envs
    from omcda_jax.behaviour import policies
    from omcda_jax.evaluate import make_evaluate
    from omcda_jax.types import ConfigError

    clock, found = clock_here(), compiler_options()
    options = {"compiler_options": found} if found else {}  # other checkouts may have none
    act = lambda params, obs, avail: policies.sample(params, obs, avail, jax.random.key(0), 0.0)
    for name in environments:
        try:
            began = clock()
            environment = envs.make(name)
            params = policies.load(name, "medium")
            imported = clock() - began
        except (ConfigError, ImportError) as error:
            report.fail(name, error)
            continue
        for count in episodes:
            if report.over():
                report.fail(f"{name}, {count} episodes", "no time left")
                continue
            play, seconds = make_evaluate(act, environment, count, **options), []
            for seed in range(2):
                began = clock()
                results = jax.block_until_ready(play(params, jax.random.key(seed)))
                seconds.append(clock() - began)
            steps = int(np.sum(results.length))
            values = {"import s": imported, "first s": seconds[0], "second s": seconds[1]}
            report.row(f"{name}, {count} episodes", values | {"steps": steps, "steps/s": steps / seconds[1]})


def facts(report: Reporter) -> None:
    """The versions and the device that this is measured on."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    found = {"platform": device.platform, "device": name, "devices": jax.device_count(), "jax": jax.__version__}
    print(json.dumps({"facts": found}), flush=True)


MEASURES = (algorithms, products, sizes, population, cases, compilation, turns, evaluation, facts)


def main(words: list[str]) -> None:
    """Measure what the JSON object of the command line asks for."""
    asked = json.loads(words[1])
    measure = {each.__name__: each for each in MEASURES}[asked.pop("measure")]
    measure(Reporter(asked.pop("limit_s", float("inf"))), **asked)


if __name__ == "__main__":
    main(sys.argv)
