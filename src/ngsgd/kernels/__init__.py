"""A training step in few pieces, compiled where there is a C compiler.

What is no matrix product is made in one pass over memory; an affine layer forwards, its step, and the renewal of an
estimate are one call each, whose products are PyTorch's own.
"""
