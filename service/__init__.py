"""Shinkei: accounts, and the worlds that their owners write, over HTTP and PostgreSQL."""

__version__ = "0.1.0"
