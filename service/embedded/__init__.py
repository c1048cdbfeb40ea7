"""The embedded PostgreSQL, used if no database is configured."""
