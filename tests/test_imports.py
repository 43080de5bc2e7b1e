"""Imports go down only, as CONTRIBUTING says."""

import ast
from pathlib import Path

import pytest

import fwrnn

PACKAGE = Path(fwrnn.__file__).parent
BASE = {"config", "errors", "files", "interfaces", "intervals", "reading", "registry", "rule"}
MAY_IMPORT = {
    "errors": set(),
    "console": set(),
    "files": {"errors"},
    "machine": set(),
    "reading": {"errors"},
    "registry": {"errors"},
    "rule": set(),
    "config": {"errors", "registry"},
    "interfaces": set(),
    "intervals": set(),
    "layers": {"layers", "rule"},
    "environments": {"environments"},
    "tasks": {"tasks", "environments", "layers"} | BASE,
    "models": {"models", "layers"} | BASE,
    "learning": {"learning", "models", "machine"} | BASE,
    "benchmarks": {"benchmarks", "layers", "machine"},
    "comparison": {"comparison", "learning"} | BASE,
    "reproduction": {"reproduction", "comparison", "learning"} | BASE,
    "commands": {"commands", "benchmarks", "comparison", "reproduction", "learning"}
    | {"console", "machine"}
    | BASE,
    "cli": {"errors", "commands"},
    "__main__": {"cli"},
    "__init__": {"layers", "learning"},  # when somebody asks for it, and for type checkers
}


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports, and what it takes from them, which may be modules."""
    if isinstance(node, ast.ImportFrom):
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def is_module(name: str) -> bool:
    """And no class or function that the package has."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_imports_go_down_only(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for module in imported(node):
            if module.startswith("fwrnn.") and is_module(other := module.split(".")[1]):
                assert other in MAY_IMPORT[part], f"{path} imports {module}"
            if module.startswith("torch.utils.tensorboard"):
                assert path.name == "tracking.py"
            if "kernels" in path.parts:
                assert module != "fwrnn.layers.fast_weights"
