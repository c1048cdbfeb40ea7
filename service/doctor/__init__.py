"""``shinkei doctor``: read-only checks of an installation, with advice."""
