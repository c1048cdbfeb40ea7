"""Work that comes back, shared by the replicas."""
