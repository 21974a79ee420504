"""Config, errors, files, runs, kept results and distributed processes; imports no other package of vnet."""
