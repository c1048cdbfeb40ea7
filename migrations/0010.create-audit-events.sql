-- depends: 0009.create-throttles
--
-- Who did what to whom, from where, in which request; before and after hold what changed, without
-- secrets. Append-only by a trigger, as the service may own its tables and no grant would bind it.
-- The one exception is taking away what names a person once the account is purged: a transaction
-- that sets shinkei.pseudonymise may set address, user_agent, before and after to null.
-- Partitions are months, made by the service ahead of time and dropped when they are too old; the
-- default partition holds what comes while there is none.

set local lock_timeout = '5s';

create table if not exists audit_events (
    id uuid not null,
    occurred_at timestamptz not null default now(),
    action text not null,
    actor_id uuid,
    actor_role text,
    subject_id uuid,
    address inet,
    user_agent text,
    request_id text,
    before jsonb,
    after jsonb,
    constraint audit_events_pkey primary key (occurred_at, id)
) partition by range (occurred_at);

create table if not exists audit_events_default partition of audit_events default;

create index if not exists audit_events_subject_id_idx
    on audit_events (subject_id, occurred_at desc, id desc);
create index if not exists audit_events_actor_id_idx
    on audit_events (actor_id, occurred_at desc, id desc);
create index if not exists audit_events_action_idx
    on audit_events (action, occurred_at desc, id desc);

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

drop trigger if exists audit_events_append_only on audit_events;
create trigger audit_events_append_only before update or delete on audit_events
    for each row execute function refuse_audit_change();
drop trigger if exists audit_events_no_truncate on audit_events;
create trigger audit_events_no_truncate before truncate on audit_events
    for each statement execute function refuse_audit_change();
