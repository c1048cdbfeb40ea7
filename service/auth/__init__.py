"""Registration, sign-in, and the tokens that prove it."""
