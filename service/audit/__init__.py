"""The audit log: the actor, action, subject, origin and time of each event."""
