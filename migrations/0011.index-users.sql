-- depends: 0010.create-audit-events
--
-- What the administrator's list of users filters and sorts by: each sort is a keyset on its column
-- and id; role and status, of which there are few, lead an index of their own for the newest first.

set local lock_timeout = '5s';

create extension if not exists pg_trgm;

create index if not exists users_created_at_idx on users (created_at, id);
create index if not exists users_role_created_at_idx on users (role, created_at, id);
create index if not exists users_status_created_at_idx on users (status, created_at, id);
create index if not exists users_search_idx
    on users using gin (email_folded gin_trgm_ops, lower(name) gin_trgm_ops);
create index if not exists users_settings_idx on users using gin (settings jsonb_path_ops);
