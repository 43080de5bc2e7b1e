"""``fwrnn evaluate RUN``: rebuild a trained model from its folder and test it."""

import json

from fwrnn.commands.arguments import Parser
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
    parser.add_argument("--device", help="instead of the one the run was configured with")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    return parser


def main(argv: list[str]) -> int:
    """Parse, test, print."""
    options = parser().parse_args(argv)
    result = evaluate_run(
        options.run, options.split, options.data, options.device, options.data_dir
    )
    print(json.dumps(result) if options.json else summary(result))
    return 0


def evaluate_run(
    run: str,
    split: str = "test",
    data: str | None = None,
    device: str | None = None,
    data_dir: str | None = None,
) -> dict:
    """The score of a run's best weights on a split, or on a file of examples.

    Returns a flat dictionary with ``error`` (a fraction), ``loss`` (nats), ``wrong``,
    ``examples``, and ``recorded_error`` and ``reproduced`` where the run recorded this number.

    Raises:
        UserError: no such run, a broken checkpoint, or a file that cannot be read.
    """
    from fwrnn.commands.assembly import load_run
    from fwrnn.training.evaluation import evaluate
    from fwrnn.training.run_folder import RunFolder

    (config, task, model, where), update = load_run(run, device, data_dir)
    groups = [task.split(split)] if data is None else read_examples(task, data)
    score = evaluate(model, *(group.to(where) for group in groups))
    recorded = None if data is not None else RunFolder(run).read_metrics().get(f"{split}_error")
    return {
        "run": str(run),
        "model": config.model.name,
        "hidden_size": config.model.hidden_size,
        "task": config.task.name,
        "data": split if data is None else data,
        "error": score.error,
        "loss": score.loss,
        "wrong": score.wrong,
        "examples": score.count,
        "best_update": update,
        **({} if recorded is None else {"recorded_error": recorded}),
        **({} if recorded is None else {"reproduced": recorded == score.error}),
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
    text = (
        f"{result['model']}-{result['hidden_size']} on {result['data']}: "
        f"error {100 * result['error']:.2f} % ({result['wrong']:,} of {result['examples']:,}), "
        f"loss {result['loss']:.4f}"
    )
    if "reproduced" in result:
        text += (
            "\nas recorded, exactly"
            if result["reproduced"]
            else (
                f"\nrecorded was {result['recorded_error']:.6g}: not the same, as can happen with "
                "another machine, device or version of PyTorch"
            )
        )
    return text
