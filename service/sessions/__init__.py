"""Sessions: one for each sign-in. Its tokens work until it ends."""
