"""Work that comes back, on one replica at a time."""
