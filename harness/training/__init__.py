"""Plan → adapter: per-unit gradients, noise, engine, checkpoints, the loop. Only `ray.py` knows Ray."""
