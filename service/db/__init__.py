"""PostgreSQL: the pool, transactions, reads that share a query, lists and migrations. It knows no HTTP."""
