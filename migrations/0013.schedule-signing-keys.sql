-- depends: 0012.guard-audit-partitions
--
-- From when each key signs. It is published before that, so that whoever caches the published keys
-- has it by then, and verifies until its successor has signed for as long as a token is good for.

set local lock_timeout = '5s';

alter table signing_keys add column if not exists signs_from timestamptz;
update signing_keys set signs_from = created_at where signs_from is null;
alter table signing_keys alter column signs_from set default now();
alter table signing_keys alter column signs_from set not null;
