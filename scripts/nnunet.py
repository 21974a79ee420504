"""The same as `vnet nnunet`, for a checkout: python scripts/nnunet.py --help"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages of this checkout
    from vnet.commands.main import start

    start("nnunet")
