"""The ``users`` table: its SQL, the rules that always hold, and the preferences in it."""
