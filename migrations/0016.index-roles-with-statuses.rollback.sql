set local lock_timeout = '5s';

drop index if exists users_role_status_email_folded_idx;
drop index if exists users_role_status_created_at_idx;
