"""Passwords, access tokens, signing keys and access guards."""
