"""What is decided, one module per surface. `interface.py` is the place that a surface fills."""
