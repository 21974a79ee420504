"""The `vnet` command: `main` chooses a command, each other module is one."""
