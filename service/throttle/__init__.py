"""Rate limits, shared by all replicas."""
