"""Sessions. Each sign-in opens one, and its tokens work until it ends."""
