"""The tests. reference.py holds the slow twins, written from the equations."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, and as early: before PyTorch is imported
