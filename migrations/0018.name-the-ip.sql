-- depends: 0017.index-sessions-of-a-user
--
-- A client's IP is called ip in the API and the tables, because "address" also meant an email. The
-- columns are renamed in one step, as no released version uses the old name. Rerunning 0004 or 0010
-- brings the old column back, so both cases are handled here.

set local lock_timeout = '5s';

do $$
begin
    if exists (
        select from information_schema.columns
        where table_schema = current_schema and table_name = 'sessions' and column_name = 'ip'
    ) then
        alter table sessions drop column if exists address;
    else
        alter table sessions rename column address to ip;
    end if;
    if not exists (
        select from information_schema.columns
        where table_schema = current_schema and table_name = 'audit_events' and column_name = 'ip'
    ) then
        alter table audit_events rename column address to ip;
    end if;
end
$$;

create or replace function refuse_audit_change() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and current_setting('shinkei.pseudonymise', true) = 'on'
        and (new.ip is null or new.ip = old.ip)
        and (new.user_agent is null or new.user_agent = old.user_agent)
        and (new.before is null or new.before = old.before)
        and (new.after is null or new.after = old.after)
        and (new.id, new.occurred_at, new.action, new.actor_role)
            is not distinct from (old.id, old.occurred_at, old.action, old.actor_role)
        and (new.actor_id, new.subject_id, new.request_id)
            is not distinct from (old.actor_id, old.subject_id, old.request_id)
    then
        return new;
    end if;
    raise exception 'audit_events is append-only' using errcode = 'insufficient_privilege';
end
$$;
