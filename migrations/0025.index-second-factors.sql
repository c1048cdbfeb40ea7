-- depends: 0024.create-factors
--
-- The users with a second factor, and those without one, in both orders of the administrators' list.
-- One index over both would be passed by: PostgreSQL expects the rows of either kind to be evenly
-- spread, and walks all users in their order. A role or a status beside it needs no index of its own:
-- see service/admin/lists.py.

set local lock_timeout = '5s';

create index if not exists users_with_second_factor_created_at_idx
    on users (created_at, id) where has_second_factor;
create index if not exists users_with_second_factor_email_folded_idx
    on users (email_folded) where has_second_factor;
create index if not exists users_without_second_factor_created_at_idx
    on users (created_at, id) where not has_second_factor;
create index if not exists users_without_second_factor_email_folded_idx
    on users (email_folded) where not has_second_factor;
