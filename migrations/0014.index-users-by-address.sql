-- depends: 0013.schedule-signing-keys
--
-- The users of a role, or of a status, by address: without these, all of them are sorted for a page,
-- or all addresses walked through. Who looks for both has the planner know how they go together.

set local lock_timeout = '5s';

create index if not exists users_role_email_folded_idx on users (role, email_folded);
create index if not exists users_status_email_folded_idx on users (status, email_folded);
create statistics if not exists users_role_status_statistics (mcv) on role, status from users;
