"""Compiled loops (numba) and how they are divided over threads; numba is imported at their first use."""
