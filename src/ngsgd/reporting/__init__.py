"""Reports on runs: ``metrics.tsv``, plots and ``ngsgd status``."""
