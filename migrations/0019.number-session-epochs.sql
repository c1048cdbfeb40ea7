-- depends: 0018.name-the-ip
--
-- What takes access away must not depend on how many sessions there are. A session belongs to an
-- epoch of its account, and works only while that is the account's current one. So all sessions end
-- when the account's row gets a new epoch, and a job deletes theirs later. swept_epoch is the last
-- epoch whose predecessors are deleted.
--
-- Constant defaults do not rewrite the tables. The index on (user_id, epoch, id) finds live sessions
-- in the order of pages, past any number of ended ones, and ended ones for the job.
-- users_unswept_idx finds accounts with sessions to delete: nearly always none. While replicas of the
-- previous version run, they accept the sessions that newer ones have ended in this way, and the
-- sessions that they open for such an account do not work on the newer ones.

set local lock_timeout = '5s';
set local statement_timeout = 0;

alter table users
    add column if not exists session_epoch integer not null default 0,
    add column if not exists swept_epoch integer not null default 0;
alter table sessions add column if not exists epoch integer not null default 0;

create index if not exists sessions_user_id_epoch_id_idx on sessions (user_id, epoch, id);
drop index if exists sessions_user_id_id_idx;
create index if not exists users_unswept_idx on users (id) where session_epoch <> swept_epoch;
