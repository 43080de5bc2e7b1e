"""Put a trained network into the package, to be loaded by its name.

    python scripts/ship_weights.py RUN NAME

RUN is a folder that ``fwrnn train`` wrote. Then, anywhere: ``fwrnn.load("NAME")``.
"""

import argparse

from omegaconf import OmegaConf

from fwrnn.config import migrated
from fwrnn.learning.assembly import load_run
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.shipped import FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("name", metavar="NAME")
    options = parser.parse_args()
    (_, _, _, model, _), update = load_run(options.run, "cpu")
    run, ships = RunFolder(options.run), RunFolder(FOLDER / options.name)
    config = migrated(run.read_config())
    if "backend" in config["model"]:
        config["model"]["backend"] = "attention"  # a first answer that waits for no compiler
    ships.write_metrics(run.read_metrics())
    ships.config.write_text(OmegaConf.to_yaml(config))
    ships.write_checkpoint(ships.best, {"update": update, "model": model.state_dict()})


if __name__ == "__main__":
    main()
