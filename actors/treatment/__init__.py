"""What chooses among a few arms and learns from what came of it. `treatment.py` is the door."""
