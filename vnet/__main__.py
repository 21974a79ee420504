"""`python -m vnet` is the `vnet` command."""

from vnet.commands.main import start

if __name__ == "__main__":
    start()
