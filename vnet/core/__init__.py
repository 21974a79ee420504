"""What every other package stands on: config, errors, files, runs, distributed processes."""
