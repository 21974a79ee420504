"""The house's order: `scripts -> vnet -> pointrend`, and inside `vnet` only imports of packages further down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each imports only itself and those before it
ORDER = ["core", "data", "model", "inference", "evaluation", "report", "training", "commands"]
MODULES = sorted(path for folder in ("pointrend", "vnet", "scripts") for path in (ROOT / folder).rglob("*.py"))
LINES = 400


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted module, line) of every import of a file, wherever in it; `from a import b` as a.b."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            home = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{home}.{name.name}", node.lineno) for name in node.names)


def fault(importer: str, imported: str) -> str:
    """Why a file (dotted) may not import a module, "" where it may."""
    target = imported.split(".")[0]
    if target not in ("pointrend", "vnet", "scripts", "tests"):
        return ""
    home = importer.split(".")
    if home[0] == "pointrend" and target != "pointrend":
        return f"pointrend must not import {target}"
    if home[0] == "vnet" and target not in ("pointrend", "vnet"):
        return f"vnet must not import {target}"
    if home[0] == "scripts" and target == "tests":
        return "scripts must not import tests"
    if home[0] == target == "vnet" and len(home) > 2:
        here, there = home[1], [*imported.split("."), ""][1]
        if there in ORDER and ORDER.index(there) > ORDER.index(here):
            return f"vnet.{here} must not import vnet.{there}, which stands above it"
    return ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_the_order(path: Path) -> None:
    importer = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    faults = [f"line {line}: {why}" for module, line in imports(path) if (why := fault(importer, module))]
    assert not faults, "\n".join([str(path), *faults])


@pytest.mark.parametrize(
    ("importer", "imported", "refused"),
    [
        ("vnet.core.files", "vnet.data.nifti", True),
        ("vnet.evaluation.scores", "vnet.report.case_pictures.png", True),
        ("vnet.report.page", "vnet.evaluation.scores", False),
        ("vnet.data.store", "vnet.data.nifti", False),
        ("vnet.core.config.schema", "vnet.training.run", True),
        ("vnet.core.environment", "vnet", False),
        ("pointrend.head", "vnet.model.layers", True),
        ("pointrend.integrations.monai", "scripts.benchmark", True),
        ("vnet.model.network", "pointrend.head", False),
        ("vnet.data.store", "scripts.figures", True),
        ("scripts.benchmark", "vnet.commands.main", False),
    ],
)
def test_an_arrow_against_the_order_is_seen(importer: str, imported: str, refused: bool) -> None:
    assert bool(fault(importer, imported)) == refused


def test_imports_are_found_in_functions_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "vnet" / "data" / "store.py"
    module.parent.mkdir(parents=True)
    module.write_text("def read():\n    from ..report import page\n    import vnet.training.run\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert list(imports(module)) == [("vnet.report.page", 2), ("vnet.training.run", 3)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_stays_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES, f"{path}: {lines} lines; split it at a noun"


def test_vnet_holds_packages_only() -> None:
    found = {path.name for path in (ROOT / "vnet").iterdir() if path.name != "__pycache__"}
    assert found == {*ORDER, "__init__.py", "__main__.py", "py.typed"}


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES if path.parts[len(ROOT.parts)] != "scripts"}
    assert all((folder / "__init__.py").is_file() for folder in folders)
