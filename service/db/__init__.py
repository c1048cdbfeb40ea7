"""PostgreSQL: the pool, transactions, shared reads, lists and migrations. It knows no HTTP."""
