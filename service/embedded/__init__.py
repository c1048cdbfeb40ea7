"""The embedded PostgreSQL that runs if no database is configured."""
