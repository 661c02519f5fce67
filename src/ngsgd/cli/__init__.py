"""Layer 5, the faces: the ``ngsgd`` command, the frame in which the workflow's scripts run, tables and plots."""
