"""What a training step does to rows beside matrix products, each in one pass over memory."""
