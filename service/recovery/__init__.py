"""Mailed links that reset a password, or verify, change or restore an email."""
