"""``fwrnn train --help``: what there is to choose, and every key of what is chosen, explained."""

import re
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from fwrnn.commands.composition import checked, composed, planned
from fwrnn.commands.options import INTERNALS, conf_dirs, group_options
from fwrnn.config import GROUPS, TASKS, read_config
from fwrnn.errors import UserError


def help_text(argv: list[str]) -> str:
    """What ``fwrnn train`` takes, and what it would run with ``argv``, each key explained.

    Of a sweep it is about the first job.

    Raises:
        UserError: an override is wrong, or what is chosen does not go together, with any task if
            ``argv`` chooses none.
    """
    words = checked(argv)[1]
    if {"-m", "--multirun"} & set(argv):
        words = next(iter(planned(argv)), words)
    config, note = _fitting(words)
    chosen = config.hydra.runtime.choices
    lines = [
        HEADER,
        *(f"  {group + '=':<12}{', '.join(names)}" for group, names in group_options().items()),
        *note,
    ]
    for group in GROUPS:
        comments, title = _comments(f"{group}/{chosen[group]}")
        lines += ["", f"{group}={chosen[group]}: {' '.join(title)}"]
        values = {key: config[group][key] for key in config[group] if key not in INTERNALS}
        lines += _explained(f"{group}.", values, comments)
    comments, _ = _comments("config")
    control = chosen.control or "none"
    _, title = _comments(f"control/{control}")
    values = {key: config[key] for key in ("seed", "device", "threads", "resume")}
    lines += ["", f"control={control}: {' '.join(title)}", ""]
    return "\n".join([*lines, *_explained("", values, comments), "", FOOTER])


def _fitting(words: list[str]) -> tuple[DictConfig, list[str]]:
    """What Hydra composes, checked as for training; and what help says of it beforehand.

    Who asks what a model or a trainer takes need not know for which tasks it is: if ``words`` have
    none, and it is not for the default, it is shown with the first that it is for.
    """
    try:
        return _composed_checked(words), []
    except UserError as error:
        if any(word.lstrip("+").startswith("task=") for word in words):
            raise
        for task in TASKS:
            with suppress(UserError):
                config = _composed_checked([*words, f"task={task}"])
                return config, ["", f"Shown with task={task}, as without it: {error}"]
        raise


def _composed_checked(words: list[str]) -> DictConfig:
    config = composed(words, with_hydra=True)
    read_config(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    return config


HEADER = """\
fwrnn train: train a model on a task, test it once, and log to TensorBoard.

usage: fwrnn train [GROUP=OPTION …] [KEY=VALUE …]        -m before them: a sweep over KEY=A,B,C
"""
FOOTER = """\
Examples:
  fwrnn train task=assoc_retrieval
  fwrnn train model=lstm model.hidden_size=100 seed=1
  fwrnn train task=mnist_glimpses model.hidden_size=200
  fwrnn train -m control=none,no_memory,folded seed=0,1
  fwrnn train resume=outputs/runs/RUN

More: --help task=catch (what it takes), --cfg job (the configuration, without running it),
--hydra-help (Hydra's own options)"""


def _explained(prefix: str, values: dict, comments: dict[str, str]) -> list[str]:
    """A line for every key, as one would set it, with its comment behind it."""
    rows = {key: f"  {prefix}{key}={_as_set(value)}" for key, value in values.items()}
    width = max((len(row) for row in rows.values() if len(row) < 40), default=0)
    return [
        f"{row:<{width}}   # {comments[key]}" if key in comments else row
        for key, row in rows.items()
    ]


def _as_set(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, ListConfig):
        return f"[{','.join(map(_as_set, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comments(name: str) -> tuple[dict[str, str], list[str]]:
    """What a configuration's file, and those that it is made from, say of each key and at first."""
    path = next(path for folder in conf_dirs() if (path := folder / f"{name}.yaml").is_file())
    text, comments = path.read_text(encoding="utf-8"), {}
    for shared in re.findall(r"^  - /?([\w/]+)@_here_$", text, re.M):
        comments |= _comments(shared)[0]
    comments |= dict(re.findall(r"^(\w+):.*?\s# ?(.*)$", text, re.M))
    title = re.match(r"(?:#.*\n)*", text)
    assert title is not None  # which may be empty
    return comments, re.findall(r"^#(?! ?@) ?(.+)$", title.group(), re.M)
