"""Accounts, for their owners: registration and profile."""
