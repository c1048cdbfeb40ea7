"""``shinkei doctor``: what is wrong with a set-up, and what to do. It changes nothing."""
