"""Metrics, scores and the statistics of a comparison."""
