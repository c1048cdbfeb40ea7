"""Who waits for whom in PostgreSQL."""

# How many locks of this database are waited for.
WAITING = """
    select count(*) from pg_locks join pg_stat_activity using (pid)
    where not granted and datname = current_database()
"""
