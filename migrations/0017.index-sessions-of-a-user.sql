-- depends: 0016.index-roles-with-statuses
--
-- The sessions of a user in the order that pages of them have: who signs in once a minute has tens
-- of thousands, which were sorted for each page.

set local lock_timeout = '5s';

create index if not exists sessions_user_id_id_idx on sessions (user_id, id);
drop index if exists sessions_user_id_idx;
