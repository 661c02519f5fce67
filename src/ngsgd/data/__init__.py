"""Layer 3: corpora, labels, feature transforms and archives of examples. Of the network it knows only the context."""
