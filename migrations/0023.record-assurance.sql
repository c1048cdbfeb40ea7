-- depends: 0022.create-worlds
--
-- How and when the owner of a session proved who they are. amr lists the methods in the order of
-- their use (RFC 8176), and aal is the level that they reached (NIST SP 800-63B-4). aal1_at and
-- aal2_at say when each level was last proved. A session from before, or from a replica of the
-- previous version, counts as one by password, proved long ago: its times are null.
--
-- users.has_second_factor says whether the account has one that is confirmed. Without it, each of
-- its sessions counts as level 1, so that no session has to change when the last factor is removed.
--
-- Constant defaults do not rewrite the tables. The check is not valid for the rows that there are, as
-- they would be scanned while the tables are locked; they have the default.

set local lock_timeout = '5s';

alter table users add column if not exists has_second_factor boolean not null default false;
alter table sessions
    add column if not exists amr text[] not null default '{pwd}',
    add column if not exists aal smallint not null default 1,
    add column if not exists aal1_at timestamptz,
    add column if not exists aal2_at timestamptz;
alter table sessions drop constraint if exists sessions_aal_check;
alter table sessions add constraint sessions_aal_check check (aal in (1, 2)) not valid;
