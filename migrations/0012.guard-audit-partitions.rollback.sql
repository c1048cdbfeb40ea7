drop trigger if exists audit_events_no_truncate on audit_events_default;
