"""Layer 1, the mathematics: tensors in, tensors out. Knows no file and no acoustic model."""
