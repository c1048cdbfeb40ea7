-- depends: 0011.index-users
--
-- A statement trigger on a partitioned table does not hold for a partition that is named itself:
-- each one gets its own against TRUNCATE, the months' ones when the service makes them.

set local lock_timeout = '5s';

drop trigger if exists audit_events_no_truncate on audit_events_default;
create trigger audit_events_no_truncate before truncate on audit_events_default
    for each statement execute function refuse_audit_change();
