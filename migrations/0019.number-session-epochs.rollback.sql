-- Sessions that ended with their epoch are deleted first, or they would work again.

set local lock_timeout = '5s';
set local statement_timeout = 0;

lock table users, sessions in access exclusive mode;

do $$
begin
    if exists (
        select from information_schema.columns
        where table_schema = current_schema and table_name = 'sessions' and column_name = 'epoch'
    ) then
        delete from sessions using users
        where users.id = sessions.user_id and sessions.epoch <> users.session_epoch;
    end if;
end
$$;

create index if not exists sessions_user_id_id_idx on sessions (user_id, id);
drop index if exists users_unswept_idx;
drop index if exists sessions_user_id_epoch_id_idx;
alter table sessions drop column if exists epoch;
alter table users
    drop column if exists session_epoch,
    drop column if exists swept_epoch;
