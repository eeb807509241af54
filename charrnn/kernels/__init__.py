"""Compute kernels over numpy arrays: arrays in, arrays out, nothing else of charrnn known here.

counters    counter-based random numbers: a draw is a pure function of what it is for
recurrence  one time step of each cell
drawing     from logits to the next character: the filters and the draw
"""
