"""``fwrnn sweep status FOLDER`` and ``fwrnn sweep resume FOLDER``."""

from fwrnn.commands.arguments import Parser
from fwrnn.commands.sweeps import Sweep
from fwrnn.reading import path_text


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
    content = sweep.read()
    if options.action == "resume":
        from fwrnn.commands import composition, train

        composition.check_recorded(content["command"])
        return train.main([*content["command"], f"hydra.sweep.dir={options.folder}"])
    for name, job in content["jobs"].items():
        print(f"{job['state']:<12} {path_text(job.get('folder') or '')}  {path_text(name)}")
    print(sweep.summary()[0])
    return 0
