"""Lock waits in PostgreSQL."""

# Number of locks awaited in this database.
WAITING = """
    select count(*) from pg_locks join pg_stat_activity using (pid)
    where not granted and datname = current_database()
"""
