set local lock_timeout = '5s';

do $$
begin
    if exists (
        select from information_schema.columns
        where table_schema = current_schema and table_name = 'sessions' and column_name = 'ip'
    ) then
        alter table sessions rename column ip to address;
    end if;
    if exists (
        select from information_schema.columns
        where table_schema = current_schema and table_name = 'audit_events' and column_name = 'ip'
    ) then
        alter table audit_events rename column ip to address;
    end if;
end
$$;

create or replace function refuse_audit_change() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and current_setting('shinkei.pseudonymise', true) = 'on'
        and (new.address is null or new.address = old.address)
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
