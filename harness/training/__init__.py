"""Plan → adapter: per-unit gradients, noise, engine, checkpoints, the loop. Only `ray` and `ray_session` know Ray."""
