"""PostgreSQL: pool, transactions, coalesced reads, lists and migrations. Knows no HTTP."""
