"""Data sets: folders, NIfTI volumes, checks, folds, preprocessing, training batches, and synthetic volumes."""
