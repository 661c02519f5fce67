"""A training step in few pieces, compiled where there is a C compiler.

What is no matrix product is made in one pass over memory. The way through affine layers that stand one above the other,
the way back, their step, and the renewal of an estimate are one call each, whose products are PyTorch's own.
"""
