"""Processes: listening, serving, several workers, and the listener for Prometheus."""
