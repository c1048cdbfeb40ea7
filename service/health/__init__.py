"""Health probes: whether the process is alive, and whether it can serve requests."""
