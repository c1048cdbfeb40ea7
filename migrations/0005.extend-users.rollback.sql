alter table users drop constraint if exists users_status_check;
drop index if exists users_purge_at_idx;
drop index if exists users_suspended_until_idx;
alter table users
    drop column if exists status,
    drop column if exists suspended_until,
    drop column if exists suspension_reason,
    drop column if exists purge_at;
