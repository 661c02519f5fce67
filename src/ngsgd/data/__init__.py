"""Layer 3, the data: corpora, labels, transforms, archives of examples. Knows no network beyond its context."""
