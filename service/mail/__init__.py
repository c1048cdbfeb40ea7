"""Mail: an outbox that transactions write to, and the task that empties it."""
