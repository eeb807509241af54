"""The rows of benchmarks/faults.py: what is done to a run, and what must be left of it."""
