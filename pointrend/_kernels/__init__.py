"""The compiled loops, one module a job, and how they are divided over threads."""
