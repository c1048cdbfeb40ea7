-- depends: 0004.extend-sessions
--
-- An account is active, suspended (for good, or until suspended_until), or deleting: asked to be
-- deleted, and purged once purge_at has passed unless its owner signs in before.

set local lock_timeout = '5s';

alter table users
    add column if not exists status text not null default 'active',
    add column if not exists suspended_until timestamptz,
    add column if not exists suspension_reason text,
    add column if not exists purge_at timestamptz;

alter table users drop constraint if exists users_status_check;
alter table users add constraint users_status_check check (
    (status = 'suspended' or (suspended_until is null and suspension_reason is null))
    and (status = 'deleting') = (purge_at is not null)
    and status in ('active', 'suspended', 'deleting')
);

create index if not exists users_purge_at_idx on users (purge_at) where purge_at is not null;
create index if not exists users_suspended_until_idx on users (suspended_until)
    where suspended_until is not null;
