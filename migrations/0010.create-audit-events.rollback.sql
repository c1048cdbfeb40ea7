drop table if exists audit_events;
drop function if exists refuse_audit_change();
