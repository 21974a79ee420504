"""The `vnet` command and how every command starts and ends."""
