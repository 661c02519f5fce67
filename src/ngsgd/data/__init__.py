"""Corpora, labels, feature transforms and archives of examples."""
