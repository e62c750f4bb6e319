"""Training: arguments, optimization, the loop."""
