set local lock_timeout = '5s';

create index if not exists sessions_user_id_idx on sessions (user_id);
drop index if exists sessions_user_id_id_idx;
