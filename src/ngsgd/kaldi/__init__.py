"""Kaldi's file formats, read and written as numpy arrays, and its decoder."""
