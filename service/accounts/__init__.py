"""The ``users`` table: its SQL, its rules and the preferences stored in it."""
