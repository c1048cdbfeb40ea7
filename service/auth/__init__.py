"""Passwords, access tokens and the keys that sign them."""
