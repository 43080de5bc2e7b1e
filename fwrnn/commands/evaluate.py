"""``fwrnn evaluate RUN``: rebuild a trained model from its folder and test it."""

import json

from fwrnn.commands.arguments import Parser, positive
from fwrnn.errors import UserError


def parser() -> Parser:
    parser = Parser(
        prog="fwrnn evaluate",
        description="Test the best weights of a run, and compare with what it recorded.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder that fwrnn train wrote")
    examples = parser.add_mutually_exclusive_group()
    examples.add_argument(
        "--split", choices=["test", "val", "train"], default="test", help="default: test"
    )
    examples.add_argument(
        "--data",
        metavar="FILE",
        help="your own examples instead: lines such as c9k8j3f1??c<TAB>9",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where the task's data lie here, instead of where they lay in the run (task.data_dir)",
    )
    parser.add_argument(
        "--games",
        metavar="N",
        type=positive,
        help="games to play; default: as many as the run did",
    )
    parser.add_argument("--device", help="instead of the one the run was configured with")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    return parser


def main(argv: list[str]) -> int:
    """Parse, test, print."""
    options = parser().parse_args(argv)
    result = evaluate_run(
        options.run,
        options.split,
        options.data,
        options.device,
        options.data_dir,
        options.games,
    )
    print(json.dumps(result) if options.json else summary(result))
    return 0


def evaluate_run(
    run: str,
    split: str = "test",
    data: str | None = None,
    device: str | None = None,
    data_dir: str | None = None,
    games: int | None = None,
) -> dict:
    """The score of a run's best weights on a split, or on a file of examples.

    Returns a flat dictionary with ``error`` (a fraction), ``loss`` (nats), ``wrong`` and
    ``examples``; of a game with ``reward``, its 95 % interval ``reward_low`` to ``reward_high``,
    ``won`` (a fraction) and ``games``. ``recorded_…`` and ``reproduced`` follow where the run
    recorded this number.

    Raises:
        UserError: no such run, a broken checkpoint, or a file that cannot be read.
    """
    from fwrnn.commands.assembly import load_run
    from fwrnn.interfaces import is_game
    from fwrnn.training.run_folder import RunFolder

    (config, task, model, where), update = load_run(run, device, data_dir)
    played = is_game(task)
    if played and data is not None:
        raise UserError(f"--data is for examples; {config.task.name} is played")
    if not played and games is not None:
        raise UserError(f"--games is for games; {config.task.name} has examples")
    recorded = RunFolder(run).read_metrics()
    if played:
        name, found = "reward", play_games(task, model, where, split, games, recorded)
    else:
        name, found = "error", test_examples(task, model, where, split, data)
    same = data is None and games in (None, recorded.get(f"{split}_games"))
    known = recorded.get(f"{split}_{name}") if same else None
    return {
        "run": str(run),
        "model": config.model.name,
        "hidden_size": config.model.hidden_size,
        "task": config.task.name,
        "data": split if data is None else data,
        **found,
        "best_update": update,
        **({} if known is None else {f"recorded_{name}": known}),
        **({} if known is None else {"reproduced": known == found[name]}),
    }


def test_examples(task, model, device, split: str, data: str | None) -> dict:
    from fwrnn.training.evaluation import evaluate

    groups = [task.split(split)] if data is None else read_examples(task, data)
    score = evaluate(model, *(group.to(device) for group in groups))
    return {
        "error": score.error,
        "loss": score.loss,
        "wrong": score.wrong,
        "examples": score.count,
    }


def play_games(task, model, device, split: str, games: int | None, recorded: dict) -> dict:
    from fwrnn.training.games import evaluate_play

    count = games or recorded.get(f"{split}_games", 1000)
    result = evaluate_play(model, task, split, count, device)
    return {
        "reward": result.reward,
        "reward_low": result.low,
        "reward_high": result.high,
        "won": result.won,
        "games": result.games,
    }


def read_examples(task, path: str) -> list:
    """The examples of a file, in the task's own format."""
    if not hasattr(task, "read_file"):
        raise UserError(
            "--data is for tasks on text; for images give the folder of a data set by --data-dir"
        )
    try:
        return task.read_file(path)
    except ValueError as error:
        raise UserError(error) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def summary(result: dict) -> str:
    """The result in a line or two for people."""
    text = f"{result['model']}-{result['hidden_size']} on {result['data']}: "
    if "reward" in result:
        text += (
            f"reward {result['reward']:.3f} (95 %: {result['reward_low']:.3f} to "
            f"{result['reward_high']:.3f}), {100 * result['won']:.1f} % of {result['games']:,} "
            "games won"
        )
    else:
        text += (
            f"error {100 * result['error']:.2f} % ({result['wrong']:,} of {result['examples']:,}), "
            f"loss {result['loss']:.4f}"
        )
    if "reproduced" in result:
        recorded = result.get("recorded_error", result.get("recorded_reward"))
        text += (
            "\nas recorded, exactly"
            if result["reproduced"]
            else (
                f"\nrecorded was {recorded:.6g}: not the same, as can happen with "
                "another machine, device or version of PyTorch"
            )
        )
    return text
