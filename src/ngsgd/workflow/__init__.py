"""The Python behind the rules of the workflow: configuration, plans, missing inputs, and the lifecycle of a call."""
