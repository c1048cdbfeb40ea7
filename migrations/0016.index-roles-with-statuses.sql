-- depends: 0015.analyze-roles-and-statuses
--
-- The users of a role who have a status, in both orders: an index of either had PostgreSQL read all
-- that the index has, for a page of those that have both, where its statistics misled it.

set local lock_timeout = '5s';

create index if not exists users_role_status_created_at_idx
    on users (role, status, created_at, id);
create index if not exists users_role_status_email_folded_idx
    on users (role, status, email_folded);
