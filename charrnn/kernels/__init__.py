"""Compute kernels over numpy arrays: arrays in, arrays out, nothing else of charrnn known here.

counters    counter-based random numbers: a draw is a pure function of what it is for
generation  the loop that draws text, compiled
"""
