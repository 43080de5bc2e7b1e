"""``fwrnn sweep status FOLDER`` and ``fwrnn sweep resume FOLDER``."""

import re

from fwrnn.commands.arguments import Parser
from fwrnn.commands.sweeps import Sweep
from fwrnn.errors import UserError, printable


def parser() -> Parser:
    parser = Parser(
        prog="fwrnn sweep",
        description="What became of the jobs of fwrnn train -m, and going on with them: those that "
        "are done are kept, those begun go on from their last checkpoint, the others start.",
    )
    parser.add_argument("action", choices=["status", "resume"])
    parser.add_argument("folder", metavar="FOLDER", help="the sweep's, with its sweep.json")
    return parser


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    sweep = Sweep(options.folder)
    if options.action == "resume":
        return resume(sweep)
    for name, job in sweep.jobs().items():
        print(f"{job['state']:<12} {printable(job.get('folder') or '')}  {printable(name)}")
    print(sweep.summary()[0])
    return 0


def resume(sweep: Sweep) -> int:
    """Give the command again, then earlier ones that added jobs which are not done."""
    from fwrnn.commands import train
    from fwrnn.commands.composition import planned

    content = sweep.read()
    status, commands = 0, [content["command"], *content["earlier"]]
    for words in commands:
        check_recorded(words)
        if not {"-m", "--multirun"} & set(words):
            raise UserError(
                f"{sweep.file} has no command to go on with; give the sweep's own again, with "
                f"hydra.sweep.dir={sweep.folder}"
            )
    for words in commands:
        done = {name for name, job in sweep.read()["jobs"].items() if job["state"] == "done"}
        own = {" ".join(overrides) for overrides in planned(words)}
        if words is commands[0] or own - done:
            status = train.main([*words, f"hydra.sweep.dir={sweep.folder}"])
    return status  # of all jobs


def check_recorded(words: list[str]) -> None:
    """Refuse what in a recorded command would do more than train: whoever wrote it may be a
    stranger, and Hydra imports and calls what it is told to, and reads files wherever they lie.

    Raises:
        UserError: a word that is not a plain setting of ours.
    """
    from fwrnn.commands.options import INTERNALS, group_options
    from fwrnn.config import known_keys
    from fwrnn.learning.assembly import is_cache

    options = {**group_options(), **_HYDRA_GROUPS}
    keys = {*known_keys(), "trial", *_HYDRA_KEYS} - {"resume"}
    plain = {key for key in keys if key.rpartition(".")[2] not in INTERNALS}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        chosen = re.sub(r"^choice\((.*)\)$", r"\1", value).split(",")
        if key in options:
            known = {option.strip(" '\"") for option in chosen} <= {*options[key], "null"}
        elif key == "hydra.sweep.subdir":  # which is to lie below the sweep's folder
            known = (
                re.fullmatch(r"([\w=+/-]|\.(?!\.)|\$\{(seed|trial)\})+", value) and value[0] != "/"
            )
        elif key == "task.cache_dir":
            known = value == "null" or is_cache(value)
        else:
            known = key in plain and not re.search(r"\$\{(?![\w.]+\})", value)
        if not known and word not in ("-m", "--multirun"):
            raise UserError(
                f"'{word}' in the recorded command does more than choose what to train; where you "
                "trust it, give the command yourself"
            )


_HYDRA_GROUPS = {
    "hydra/launcher": ["basic", "joblib", "cores", "submitit_local", "submitit_slurm", "slurm"],
    "hydra/sweeper": ["basic", "optuna"],
}
_HYDRA_KEYS = {"hydra.sweep.dir"}
_HYDRA_KEYS |= {f"hydra.sweeper.{name}" for name in ("n_trials", "n_jobs", "sampler.seed")}
_HYDRA_KEYS |= {
    f"hydra.launcher.{name}"
    for name in (
        "n_jobs", "partition", "account", "qos", "constraint", "timeout_min", "max_num_timeout",
        "cpus_per_task", "gpus_per_node", "mem_gb", "array_parallelism", "signal_delay_s",
    )
}  # fmt: skip
