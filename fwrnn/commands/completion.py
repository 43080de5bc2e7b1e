"""``fwrnn completion bash|zsh|fish``: what a shell reads so that Tab completes our words.

Commands, groups and their options, keys, and the folders of runs. Does not import torch.
"""

import os
import sys
from glob import escape, glob
from pathlib import Path

from fwrnn.commands import COMMANDS
from fwrnn.commands.arguments import Parser

SCRIPTS = {
    "bash": """\
_fwrnn() {
  local IFS=$'\\n'
  COMPREPLY=($(fwrnn completion --query bash -- "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
  case "${COMPREPLY[*]}" in *=|*/) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _fwrnn fwrnn
""",
    "zsh": """\
#compdef fwrnn
_fwrnn() {
  local -a words_ours
  words_ours=("${(@f)$(fwrnn completion --query zsh -- "${LBUFFER}" 2>/dev/null)}")
  compadd -S '' -U -- $words_ours
}
compdef _fwrnn fwrnn
""",
    "fish": """\
complete -c fwrnn -f -a '(fwrnn completion --query fish -- (commandline -cp) 2>/dev/null)'
""",
}
INSTALL = """\
# Put it where your shell looks:
#   bash: eval "$(fwrnn completion bash)"       in ~/.bashrc
#   zsh:  eval "$(fwrnn completion zsh)"        in ~/.zshrc, after compinit
#   fish: fwrnn completion fish > ~/.config/fish/completions/fwrnn.fish
"""


def parser() -> Parser:
    parser = Parser(prog="fwrnn completion", description="Print what makes Tab complete fwrnn.")
    parser.add_argument("shell", nargs="?", choices=[*SCRIPTS], help="your shell")
    parser.add_argument("--query", choices=[*SCRIPTS], help="what the shell itself asks with")
    parser.add_argument("line", nargs="?", default="", help="the command line so far")
    return parser


def main(argv: list[str]) -> int:
    if argv[:1] == ["--query"] and len(argv) > 3:
        shell, line = argv[1], argv[3]
        # To bash, what is behind a = is a word of its own.
        found = candidates(line)
        word = line.split(" ")[-1]
        start = word.rfind("=") + 1 if shell == "bash" else 0
        print("\n".join(candidate[start:] for candidate in found))
        return 0
    shell = parser().parse_args(argv).shell or Path(os.environ.get("SHELL", "bash")).name
    if shell not in SCRIPTS:
        parser().error(f"there is none for {shell}; choose one of {', '.join(SCRIPTS)}")
    sys.stdout.write(INSTALL + SCRIPTS[shell])
    return 0


def candidates(line: str) -> list[str]:
    """The words that the last one of a command line can become."""
    *before, word = line.lstrip().split(" ")[1:] or [""]
    before = [other for other in before if other]
    if not before:
        return sorted(name for name in COMMANDS if name.startswith(word))
    if before[0] == "train":
        return _settings(word)
    if before[0] == "sweep" and len(before) == 1:
        return [action for action in ("resume", "status") if action.startswith(word)]
    return _folders(word) if before[0] in ("evaluate", "report", "sweep", "ask") else []


def _settings(word: str) -> list[str]:
    """Groups, keys and, behind a =, the options of a group and runs to resume."""
    from fwrnn.commands.options import group_options
    from fwrnn.config import known_keys

    key, assigned, value = word.partition("=")
    options = group_options()
    if not assigned:
        names = {*options, *known_keys(), "hydra.sweep.dir", "hydra.run.dir"}
        return sorted(f"{name}=" for name in names if name.startswith(word))
    if key == "resume":
        return [f"resume={folder}" for folder in [*_folders(value), "latest"]]
    *chosen, last = value.split(",")  # of several, in a sweep
    begin = "".join(f"{one}," for one in chosen)
    found = [option for option in options.get(key, ()) if option.startswith(last)]
    return [f"{key}={begin}{option}" for option in found]


def _folders(word: str) -> list[str]:
    """Folders that begin so; / after one that is no run, to go on below it."""
    found = sorted(glob(f"{escape(word or 'outputs/')}*/"))  # noqa: PTH207  (a Path drops ./)
    return [each[:-1] if Path(each, "config.yaml").is_file() else each for each in found]
