"""The checkout of this project, and its configs."""

from __future__ import annotations

from pathlib import Path

import vnet

PACKAGE = Path(vnet.__file__).parent


def checkout() -> Path | None:
    """The folder of pyproject.toml where the package is run from a checkout, None where it is installed apart."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def config_folder() -> Path:
    """The folder of the configs that come with the project: configs/ of a checkout, vnet/configs of a wheel."""
    root = checkout()
    return root / "configs" if root else PACKAGE / "configs"


def config_file(name: str) -> Path:
    """The file that `--config NAME` means: the path NAME, or the config of that name that comes with the project."""
    shipped = config_folder() / f"{name}.yaml"
    return shipped if name == Path(name).name and shipped.is_file() and not Path(name).is_file() else Path(name)
