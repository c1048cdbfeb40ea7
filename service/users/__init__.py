"""Registration and the owner's own account."""
