drop index if exists users_settings_idx;
drop index if exists users_search_idx;
drop index if exists users_status_created_at_idx;
drop index if exists users_role_created_at_idx;
drop index if exists users_created_at_idx;
