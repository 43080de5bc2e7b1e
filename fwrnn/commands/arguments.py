"""Ordinary options, for the commands that are not configured by Hydra."""

import argparse

from fwrnn.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose complaint is one line that names the command's help."""

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")
