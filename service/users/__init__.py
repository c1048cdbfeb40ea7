"""Accounts: the owner's own profile."""
