"""Layer 4, the procedure: settings, plan, one training job, averaging, combination, diagnostics, evaluation."""
