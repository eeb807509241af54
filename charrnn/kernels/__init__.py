"""Compute kernels over numpy arrays: arrays in, arrays out, nothing else of charrnn known here.

counters    counter-based random numbers: a draw is a pure function of what it is for
vectors     exp, sigmoid, tanh; numbers stored in half; how a kernel is compiled
products    matrix products: packed operands, tiles in registers
recurrent   the three cells: one step, a window forward, a window back
head        the output layer and its loss in one pass
barrier     where threads meet that share a character
generation  the loop that draws text
"""
