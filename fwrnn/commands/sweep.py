"""``fwrnn sweep status FOLDER`` and ``fwrnn sweep resume FOLDER``."""

from fwrnn.commands.arguments import Parser
from fwrnn.commands.sweeps import Sweep
from fwrnn.errors import UserError
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
    if options.action == "resume":
        return resume(sweep)
    for name, job in sweep.jobs().items():
        print(f"{job['state']:<12} {path_text(job.get('folder') or '')}  {path_text(name)}")
    print(sweep.summary()[0])
    return 0


def resume(sweep: Sweep) -> int:
    """Give the command again, then earlier ones that added jobs which are not done."""
    from fwrnn.commands import composition, train

    content = sweep.read()
    status, commands = 0, [content["command"], *content["earlier"]]
    for words in commands:
        composition.check_recorded(words)
        if not {"-m", "--multirun"} & set(words):
            raise UserError(
                f"{sweep.file} has no command to go on with; give the sweep's own again, with "
                f"hydra.sweep.dir={sweep.folder}"
            )
    for words in commands:
        done = {name for name, job in sweep.read()["jobs"].items() if job["state"] == "done"}
        own = {" ".join(overrides) for overrides in composition.planned(words)}
        if words is commands[0] or own - done:
            status = train.main([*words, f"hydra.sweep.dir={sweep.folder}"])
    return status  # of all jobs
