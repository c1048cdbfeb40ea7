"""The audit: who did what to whom, from where, written in the transaction that did it."""
