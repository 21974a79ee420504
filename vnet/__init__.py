"""A V-Net trainer for NIfTI volumes with a PointRend head; the command `vnet` and its configs are the way in."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vnet.inference.predictor import Predictor
    from vnet.model.network import VNet

_HOMES = {"VNet": "model.network", "Predictor": "inference.predictor"}
__all__ = ["Predictor", "VNet"]

# what the extra `vnet` installs, by the names of import
_NEEDED = (
    "torch numpy numba scipy monai nibabel lightning_fabric jsonargparse sklearn threadpoolctl pandas matplotlib rich "
    "tensorboard PIL skimage yaml"
).split()


def __getattr__(name: str) -> Any:
    # lazy: importing torch and MONAI takes seconds, `--help` must not
    if name in _HOMES:
        return getattr(import_module(f"vnet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vnet' has no attribute {name!r}")


def _runs_a_command() -> bool:
    """True where the program is `vnet`, `python -m vnet` or a script of this checkout, False in a user's program."""
    program = Path(sys.argv[0] if sys.argv else "")
    # Python sets argv[0] to "-m" while it imports the package of `python -m vnet`
    return program.stem in ("vnet", "-m") or program.resolve().parent == Path(__file__).resolve().parents[1] / "scripts"


if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    _message = (
        f"vnet needs packages that this Python lacks ({', '.join(_missing)}): pip install 'pointrend[vnet]', or "
        "activate the environment that has them (made by `make setup`: source .venv/bin/activate)"
    )
    if _runs_a_command():
        # a command ends in one line; an import in a user's program raises
        print(f"error: {_message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(_message)
