"""Mail: a transactional outbox, and the task that sends what is in it."""
