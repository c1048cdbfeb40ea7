set local lock_timeout = '5s';

drop index if exists users_without_second_factor_email_folded_idx;
drop index if exists users_without_second_factor_created_at_idx;
drop index if exists users_with_second_factor_email_folded_idx;
drop index if exists users_with_second_factor_created_at_idx;
