"""``fwrnn bench``: how fast the layer is on this machine, beside ``torch.nn``'s.

Ratios are measured in one process, the contestants in turn. ``bench.json`` holds

    format          of this file, 1
    mode            quick or full
    seconds         that the measurement took, compilation included
    machine         an object: cpu, cores (that the process may use), threads, load_average (before
                    the start, of one minute), device, gpu, system, python, torch, numba, triton,
                    fwrnn, commit, date (UTC), seed; null is unknown or absent
    unavailable     an object: the layer's forms that the device cannot compute, and why
    warnings        sentences on what makes the numbers doubtful
    steps           rows: training and inference steps
    small           rows: the same of few sequences
    cells           rows: single steps, beside nn.LSTMCell's
    one_thread      rows: training steps on one thread; empty where there is but one, or a GPU
    growth          rows: time and memory of a training step against T and H
    growth_ratios   rows: what a sequence of T_long steps needs, as a multiple of T_short
    share           rows: how much of the rate of matrix products a training step achieves
    updates         rows: whole training updates of every model of conf/model

Every row of a table has the same keys, of these:

    contestant      auto, which is the layer as it comes; one of its forms; or nn.LSTM, …
    form            which form of the recurrence was computed; null for those of torch.nn
    T, B, I, H      steps, sequences, inputs, units
    skipped         why nothing was measured; null when it was
    ms              median time, in milliseconds, of one step or update; null when skipped
    ms_q1, ms_q3    its quartiles
    samples         that the median was taken of
    ratio           ms divided by the ms of nn.LSTM (nn.LSTMCell, the model lstm) at the same size
    step            training (forward and backward to the parameters, not to the input) or inference
    against         T or H: what is varied
    peak_bytes      the most memory that a step held beyond its parameters and input; null where it
                    cannot be measured
    resident_bytes  the whole process's resident memory at that peak; null on a GPU
    T_short, T_long, time_ratio, memory_ratio   as under growth_ratios
    multiply_adds   of a step by the formula of benchmarks.suites.multiply_adds
    gflops          that the step achieves, two for each multiply-add, in 10⁹ a second
    sgemm_gflops    that a product of large float32 matrices achieves
    share           gflops as a fraction of sgemm_gflops
    model, hidden_size, batch_size, updates_per_second   of a model and its updates
"""

import os
import time
from pathlib import Path

from tqdm import tqdm

from fwrnn.commands.arguments import Parser
from fwrnn.errors import UserError
from fwrnn.files import json_text, write_whole

FORMAT = 1


def parser() -> Parser:
    parser = Parser(
        prog="fwrnn bench",
        description="How fast the layer is on this machine, beside torch.nn's LSTM, GRU and RNN: "
        "tables, bench.json, bench.md and bench.png. Takes about a minute.",
    )
    parser.add_argument(
        "--full", action="store_true", help="longer sequences, larger layers: takes minutes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.add_argument(
        "--output", metavar="DIR", default="outputs/bench", help="default: outputs/bench"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads; default: PyTorch's choice"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …; default: auto")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs; default: 0")
    return parser


def main(argv: list[str]) -> int:
    """Parse, measure, print, write."""
    options = parser().parse_args(argv)
    check(options)

    from fwrnn.benchmarks import speed, suites

    plan = suites.FULL if options.full else suites.QUICK
    result = bench(plan, options.device, options.threads, options.seed)
    print(json_text(result) if options.json else speed.markdown(result), flush=True)
    written = write(result, Path(options.output))
    if not options.json:
        print(f"\nin {options.output}: {', '.join(written)}")
    return 0


def check(options) -> None:
    """Raises UserError for a number out of range, or a folder that could not be written to."""
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise UserError(
            f"--threads must lie in 1 … 1024, got {options.threads}; "
            "leave it out for PyTorch's choice"
        )
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed must be 0 or more and below 2**63, got {options.seed}")
    output = Path(options.output).absolute()
    nearest = next(path for path in (output, *output.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(
            f"--output needs a folder that can be written to, got '{options.output}'; "
            "choose another"
        )


def bench(
    plan, device: str = "auto", threads: int | None = None, seed: int = 0, overrides: tuple = ()
) -> dict:
    """Measure everything ``plan`` asks for; the dictionary that this module describes.

    ``overrides`` change the configuration of the whole networks, as for ``fwrnn train``.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    from fwrnn.benchmarks import machine, suites
    from fwrnn.learning.assembly import choose_device, keep_freed_memory
    from fwrnn.learning.record import commit

    where = choose_device(device)
    keep_freed_memory()  # as training does
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    started = time.perf_counter()
    about = {**machine.describe(where), "commit": commit(), "seed": seed}
    with tqdm(total=plan.groups + 2, disable=None, dynamic_ncols=True, leave=False) as bar:

        def progress(text: str) -> None:
            bar.update()
            bar.set_description(text)

        progress("kernels")
        absent = suites.unavailable(where)
        growth = suites.measure_growth(plan, where, progress)
        result = {
            "steps": suites.measure_steps(plan, where, absent, progress),
            "small": suites.measure_small(plan, where, progress),
            "cells": suites.measure_cells(plan, where, progress),
            "one_thread": suites.measure_one_thread(plan, where, progress),
            "growth": growth,
            "growth_ratios": suites.growth_ratios(growth, *plan.growth),
            "share": suites.measure_share(plan, where, progress),
        }
        progress("whole training updates")
        result["updates"] = measure_models(plan, where, seed, overrides)
    return {
        "format": FORMAT,
        "mode": plan.mode,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": about,
        "unavailable": absent,
        "warnings": warnings(result),
        **result,
    }


def measure_models(plan, device, seed: int, overrides: tuple) -> list[dict]:
    """Updates per second of every model of ``conf/model`` on associative retrieval.

    An update is the trainer's own: a batch out of the epoch's shuffled examples, the loss, its
    gradients, clipping where it is configured, Adam, and the average of the weights. Making the
    examples and shuffling them, once an epoch, is not in it.
    """
    from fwrnn.benchmarks import suites
    from fwrnn.commands.options import conf_dir

    rows, updates = {}, {}
    for name in sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml")):
        rows[name] = {"model": name, "hidden_size": None, "batch_size": None, "skipped": None}
        try:
            trainer, config = trainer_of(name, device, seed, overrides)
        except UserError as error:
            rows[name]["skipped"] = str(error)
            continue
        updates[name] = trainer.update
        rows[name] |= {"hidden_size": config.model.hidden_size, "batch_size": trainer.batches.size}
    columns = suites.measure_updates(updates, plan, device)
    absent = suites.NOT_TIMED | {"updates_per_second": None}
    return [{**row, **columns.get(name, absent)} for name, row in rows.items()]


def trainer_of(model: str, device, seed: int, overrides: tuple):
    """A model's trainer and configuration, as ``fwrnn train model=…`` has them.

    Raises:
        UserError: the task and the model do not go together.
    """
    from fwrnn.commands.composition import compose_config
    from fwrnn.learning.assembly import assemble
    from fwrnn.learning.run_folder import RunFolder

    choices = (f"model={model}", "task=assoc_retrieval", f"device={device}", f"seed={seed}")
    config, _, task, network, where = assemble(compose_config(*choices, *overrides))
    nowhere = RunFolder(os.devnull)  # nothing is saved
    return config.trainer.build(network, task, seed, where, nowhere), config


MEASURED = "steps", "small", "cells", "one_thread", "growth", "share", "updates"


def warnings(result: dict) -> list[str]:
    """What makes the numbers doubtful, a sentence each."""
    from fwrnn.benchmarks.timing import WIDE_SPREAD

    tables = (result[table] for table in MEASURED)
    rows = [row for table in tables for row in table if row["samples"] >= 4]
    spreads = [(row["ms_q3"] - row["ms_q1"]) / row["ms"] for row in rows]
    wide = [spread for spread in spreads if spread > WIDE_SPREAD]
    if len(wide) <= len(spreads) / 10:
        return []
    return [
        f"The machine was busy: in {len(wide)} of {len(spreads)} timings the quartiles lie more "
        f"than {WIDE_SPREAD:.0%} of the median apart (at most {max(wide):.0%}). Measure again "
        "when it is idle."
    ]


def write(result: dict, folder: Path) -> list[str]:
    """Write the three files, each whole or not at all; returns their names."""
    from fwrnn.benchmarks import speed

    contents = {
        "bench.json": (json_text(result, indent=1) + "\n").encode(),
        "bench.md": (speed.markdown(result) + "\n").encode(),
        "bench.png": speed.png(result),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    return list(contents)
