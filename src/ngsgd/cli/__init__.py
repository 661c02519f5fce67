"""The ``ngsgd`` command, and the entry point of the workflow's scripts."""
