"""Training: settings, plan, training jobs, averaging, realignment, combination, diagnostics and evaluation."""
