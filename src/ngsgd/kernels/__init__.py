"""A training step in few pieces, compiled where there is a C compiler.

What is no matrix product is made in one pass over memory. The way of a minibatch through a network and back is one
call; the steps of all affine layers, with the renewals of the estimates that are due, are another. Their products are
PyTorch's own.
"""
