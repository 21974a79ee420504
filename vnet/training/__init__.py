"""The training loop, a run from config to tables, and a study of runs."""
