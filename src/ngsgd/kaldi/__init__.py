"""Kaldi's files, from bytes to numpy and back: the lowest layer, which knows nothing of what they are used for."""
