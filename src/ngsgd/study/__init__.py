"""Tests the paper's claims: a grid of training runs, their analysis, and a page of results."""
