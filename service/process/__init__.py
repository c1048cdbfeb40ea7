"""Processes: the listening socket, the server, its workers, and the Prometheus listener."""
