"""What predicts the next action. `interface.py` is the place that an engine fills."""
