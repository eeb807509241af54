"""The tests. reference.py holds the slow twins, written from the equations."""
