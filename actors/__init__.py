"""State: profiles, engine, shards. Plain classes and kernels; only *_actor.py imports ray."""
