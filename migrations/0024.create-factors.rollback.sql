set local lock_timeout = '5s';

drop table if exists used_challenges;
drop table if exists sign_in_challenges;
drop table if exists recovery_codes;
drop table if exists factors;
drop index if exists users_recovery_key_idx;
alter table users
    drop column if exists recovery_key,
    drop column if exists passkey_handle;
update users set has_second_factor = false where has_second_factor;
