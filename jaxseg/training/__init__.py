"""Training: what a config means, the step, and the loop around it."""
