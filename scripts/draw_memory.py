"""Draw what a trained fast-weights model attends to, as a PNG.

    python scripts/draw_memory.py RUN c9k8j3f1??c j0a5s5z2??a --out memory.png

RUN is a folder that ``fwrnn train`` wrote.
"""

import argparse

import torch

from fwrnn.learning.assembly import load_run
from fwrnn.learning.supervised.memory import MemoryPicture
from fwrnn.tasks.assoc_retrieval import encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("sequences", metavar="SEQUENCE", nargs="+", help="all of one length")
    parser.add_argument("--out", default="outputs/memory.png")
    options = parser.parse_args()
    (_, _, task, model, _), _ = load_run(options.run, "cpu")
    answers = [text[text.index(text[-1]) + 1] for text in options.sequences]
    inputs = torch.stack([encode(text) for text in options.sequences])
    picture = MemoryPicture(inputs, options.sequences, answers, task.spec.labels)
    picture.draw(model).savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
