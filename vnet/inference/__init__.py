"""Labels of a volume on its own grid: tiles, refinement, label files."""
