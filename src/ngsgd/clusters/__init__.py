"""Schedulers of clusters: how a job is handed to one, and what became of it."""
