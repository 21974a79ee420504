"""The `vnet` command: `main` chooses a command, each other module with a `main(argv)` is one."""
