-- depends: 0019.number-session-epochs
--
-- users.deleted_by_admin: an administrator's deletion is not cancelled when the owner signs in.
-- Deletions in progress get it from their audit event.
--
-- audit_events.operator: the name of the operator whose command made a change. It is not in before
-- or after, which are erased with the subject's account.
--
-- The trigger asked the setting shinkei.pseudonymise whether an event may be erased, and any SQL
-- could set that. It now asks the users table, with one lookup by primary key for each row. The
-- changes of an event may be erased once its subject is purged or due to be purged, and the client
-- once its actor is. The client of an event without an actor counts as its subject's. The search
-- path is fixed, because a temporary table named users would otherwise come first.

set local lock_timeout = '5s';
set local statement_timeout = 0;

alter table users add column if not exists deleted_by_admin boolean not null default false;
alter table audit_events add column if not exists operator text;

update users set deleted_by_admin = true
where purge_at is not null and not deleted_by_admin and (
    select actor_id <> subject_id from audit_events
    where subject_id = users.id and action = 'user.delete'
    order by occurred_at desc, id desc
    limit 1
);

create or replace function refuse_audit_change() returns trigger language plpgsql as $$
declare
    owners uuid[] := '{}';
begin
    if tg_op = 'UPDATE'
        and (new.id, new.occurred_at, new.action, new.actor_role, new.operator)
            is not distinct from
            (old.id, old.occurred_at, old.action, old.actor_role, old.operator)
        and (new.actor_id, new.subject_id, new.request_id)
            is not distinct from (old.actor_id, old.subject_id, old.request_id)
        and (new.ip is null or new.ip = old.ip)
        and (new.user_agent is null or new.user_agent = old.user_agent)
        and (new.before is null or new.before = old.before)
        and (new.after is null or new.after = old.after)
    then
        if (new.before, new.after) is distinct from (old.before, old.after) then
            owners := array_append(owners, old.subject_id);
        end if;
        if (new.ip, new.user_agent) is distinct from (old.ip, old.user_agent) then
            owners := array_append(owners, coalesce(old.actor_id, old.subject_id));
        end if;
        if array_position(owners, null) is null and not exists (
            select from users where id = any(owners) and coalesce(purge_at > now(), true)
        ) then
            return new;
        end if;
    end if;
    raise exception 'audit_events is append-only' using errcode = 'insufficient_privilege';
end
$$;

do $$
begin
    execute format(
        'alter function refuse_audit_change() set search_path = %I, pg_temp', current_schema
    );
end
$$;
