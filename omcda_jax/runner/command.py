"""The command line of a run: its flags, dotted settings and help."""

import functools
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from absl import flags

from omcda_jax.config import ExperimentConfig
from omcda_jax.runner import sinks
from omcda_jax.runner.jobs import Switches, place_in_run, settings_of_run, share_folder
from omcda_jax.runner.outcomes import load
from omcda_jax.runner.presets import PRESETS, resolve
from omcda_jax.runner.processes import say
from omcda_jax.runner.select import ESTIMATES, Order
from omcda_jax.runner.settings import explain
from omcda_jax.system import new_flags, read_flags
from omcda_jax.types import ConfigError, suggestion

WHICH = ("latest", "best")


class Processes(NamedTuple):
    """Which processes share the work; None if the cluster's environment says so."""

    join: bool = False
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


class Command(NamedTuple):
    """What the command line of a run asks for.

    Attributes:
        config: the resolved settings.
        mode: train or eval.
        directory: the run's directory.
        video: file for a video of one episode, or None.
        checkpoint: which checkpoint `eval` and `video` use, latest or best.
        step: step of the checkpoint that `eval` takes; None: the newest.
        processes: which processes share the work.
        switches: debugging and logging switches.
        select: what to choose a trial by, or None.
    """

    config: ExperimentConfig
    mode: str
    directory: str
    video: str | None = None
    checkpoint: str = "latest"
    step: int | None = None
    processes: Processes = Processes()
    switches: Switches = Switches()
    select: Order | None = None

    @property
    def which(self) -> str:
        """The checkpoint in a word: latest, best, or for instance latest_2000."""
        return self.checkpoint if self.step is None else f"{self.checkpoint}_{self.step}"


def parse(argv: Sequence[str], usage: str = "") -> Command | None:
    """Read the command line of a run; None if it only asks for help or the list of presets, which is printed.

    Args:
        argv: the program's name, then the words of the command line.
        usage: text to begin the help with.

    Raises:
        ConfigError: anything is unknown, misspelt or of the wrong type.
    """
    values = _flags()
    assignments = read_settings(values, argv)
    if values.config == "list" or (values.help and values.config is None):
        if values.help:
            say(f"{usage}\n{values.get_help()}\nConfigs:")
        for name, preset in PRESETS.items():
            say(f"  {name:<32} {preset.description}")
        if values.help:
            say(f"\nSettings (any key is a flag, as in --config.learner.updates=2000):\n{explain()}")
        return None
    config = _settings(values, assignments)
    if values.help:
        say(f"{config.name}: {PRESETS[values.config].description}\n\n{explain(config)}")
        return None
    seed = f"seed_{config.seed}" if config.learner.mode == "data" else "trials"
    # the name of a user's own algorithm has a colon, which some file systems refuse
    algorithm = config.algorithm.name.replace(":", ".")
    parts = (config.directory, config.name, config.data.quality, algorithm, seed)
    directory, checkpoint, step = os.path.abspath(values.workdir or os.path.join(*parts)), values.checkpoint, None
    if values.mode != "eval" and checkpoint != "latest":
        raise ConfigError(f"--checkpoint={checkpoint}: expected --mode=eval with it, found --mode={values.mode}")
    if values.mode == "eval" and place_in_run(directory):
        directory, checkpoint, step = _checkpoint_at(directory, checkpoint)
    return Command(
        config=config,
        mode=values.mode,
        directory=directory,
        video=values.video,
        checkpoint=checkpoint,
        step=step,
        processes=_processes(values, config),
        switches=Switches(values.profile, values.debug_nans, sinks.check(values.log)),
        select=_selection(values, config),
    )


def _settings(values: flags.FlagValues, assignments: Sequence[str]) -> ExperimentConfig:
    """The settings of the preset or, if no preset is named, of the run that is evaluated."""
    if values.mode == "eval" and values.config is None and values.workdir is not None:
        run, _ = place_in_run(values.workdir) or (values.workdir, ())
        shares = values.num_processes is not None and not values.coordinator and not values.distributed
        if shares:
            run = share_folder(run, values.process_id, values.num_processes)
        result = os.path.join(run, "result.json")
        if os.path.isfile(result) and "seeds" in load(result):
            raise ConfigError(
                f"--workdir={run}: expected a run, found a cell of a comparison, which `omcda-jax compare` evaluates"
            )
        return settings_of_run(run, assignments)
    return resolve(values.config, assignments)


def _checkpoint_at(directory: str, which: str) -> tuple[str, str, int | None]:
    """Return the run, the kind of checkpoint and the step that a folder inside a run's checkpoints stands for."""
    run, below = place_in_run(directory)
    which, *rest = below or (which,)
    is_step = len(rest) == 1 and rest[0].isdigit() and os.path.isdir(directory)
    if which not in WHICH or (rest and not is_step):
        raise ConfigError(
            f"--workdir: expected a run, its checkpoints/latest or checkpoints/best, or a step in one of them, found "
            f"{directory}"
        )
    return run, which, int(rest[0]) if rest else None


def read_settings(
    values: flags.FlagValues, argv: Sequence[str], own: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Read flags into `values` and return the settings: `key=value` for every `--config.key=value`.

    Args:
        values: the flags' definitions.
        argv: the program's name, then the words of the command line.
        own: settings that the command sets itself, and the flags that set them.

    Raises:
        ConfigError: as in `read_flags`; a word that is neither a flag nor a setting; or a setting of `own`.
    """
    words = read_flags(values, argv, known_only=True)
    known = [*(f"--{name}" for name in values if name not in ("h", "help")), "--config.KEY"]
    settings = [_assignment(word, known) for word in words]
    for key in (text.partition("=")[0] for text in settings):
        if key in own:
            raise ConfigError(f"--config.{key}: expected {own[key]} instead")
    return settings


def _assignment(argument: str, known: Sequence[str]) -> str:
    prefix = "--config."
    if argument.startswith(prefix) and "=" in argument:
        return argument[len(prefix) :]
    if argument.startswith(prefix):
        raise ConfigError(f"{argument}: expected {argument}=VALUE")
    name = argument.partition("=")[0]
    if name in ("--device", "--gpu", "--tpu", "--cpu"):
        raise ConfigError(
            f"{name}: no such flag; JAX uses the accelerator that it finds, or the CPU with JAX_PLATFORMS=cpu"
        )
    # `--algorithm` is short for a setting of a run; a comparison has the flag `--algorithms`
    setting = "algorithm.name" if name == "--algorithm" else name.removeprefix("--")
    if setting.partition(".")[0] in ExperimentConfig.__dataclass_fields__ and f"{name}s" not in known:
        raise ConfigError(f"{name}: no such flag; did you mean '{prefix}{setting}'?")
    raise ConfigError(f"{name}: no such flag; {suggestion(name, known)}")


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    number = functools.partial(define, "integer", lower_bound=0)
    define("string", "config", None, "preset, or `list` to see them all")
    define("enum", "mode", "train", ["train", "eval"], "eval: no training")
    define("string", "workdir", None, "run directory, instead of one named after the config")
    define("enum", "checkpoint", "latest", WHICH, "which checkpoint --mode=eval evaluates")
    define("enum", "select", None, ESTIMATES, "choose a trial by the data alone, see docs/selection.md")
    number("select_updates", 10_000, "updates that the critic of --select=fqe and --select=dr is fitted for")
    define("float", "select_gamma", None, "discount factor of that critic; by default the largest of the trials'")
    define("string", "video", None, "record one greedy episode into this .gif or .mp4")
    define("boolean", "distributed", False, "join the other processes of a cluster that JAX detects")
    define("string", "coordinator", None, "host:port of process 0, for processes that no cluster detects")
    number("num_processes", None, "how many processes share the work")
    number("process_id", None, "which process this is, counted from 0")
    define("boolean", "profile", False, "trace calls 2 to 4 into RUN/profile, for xprof or Perfetto")
    define("list", "log", [], f"also log to these: {', '.join(sinks.SINKS)}")
    define("boolean", "debug_nans", False, "stop with a traceback at the first operation that produces a NaN")
    return values


def _selection(values: flags.FlagValues, config: ExperimentConfig) -> Order | None:
    if values.select is None:
        return None
    if config.learner.mode != "trials":
        raise ConfigError(
            f"--select={values.select}: expected --config.learner.mode=trials, because it chooses among trials, found "
            f"{config.learner.mode}"
        )
    if values.num_processes is not None:
        found = f"--num_processes={values.num_processes}"
        raise ConfigError(f"--select={values.select}: expected all trials in one process, found {found}")
    return Order(values.select, values.select_updates, values.select_gamma)


def _processes(values: flags.FlagValues, config: ExperimentConfig) -> Processes:
    processes = Processes(
        join=values.distributed or values.coordinator is not None,
        coordinator=values.coordinator,
        count=values.num_processes,
        index=values.process_id,
    )
    if (processes.count is None) != (processes.index is None):
        raise ConfigError("--num_processes, --process_id: expected both or neither, found one")
    if processes.coordinator is not None and processes.count is None and not values.distributed:
        beside = "--num_processes and --process_id, or --distributed,"
        raise ConfigError(f"--coordinator: expected {beside} with it, found none of them")
    if processes.count is not None and not processes.index < processes.count:
        raise ConfigError(
            f"--process_id: expected less than --num_processes={processes.count}, found {processes.index}"
        )
    if config.learner.mode == "trials" and processes.join:
        raise ConfigError("--distributed: trials run independently; give --num_processes and --process_id only")
    if config.learner.mode == "data" and processes.count is not None and not processes.join:
        raise ConfigError(
            "--num_processes: one trial on several processes needs --coordinator=HOST:PORT or --distributed"
        )
    return processes
