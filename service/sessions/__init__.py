"""Sessions: one row for each sign-in, which its tokens live and die with."""
