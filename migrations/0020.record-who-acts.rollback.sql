set local lock_timeout = '5s';
set local statement_timeout = 0;

alter table audit_events drop column if exists operator;
alter table users drop column if exists deleted_by_admin;

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
