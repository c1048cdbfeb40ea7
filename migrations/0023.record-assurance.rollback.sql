set local lock_timeout = '5s';

alter table sessions
    drop column if exists amr,
    drop column if exists aal,
    drop column if exists aal1_at,
    drop column if exists aal2_at;
alter table users drop column if exists has_second_factor;
