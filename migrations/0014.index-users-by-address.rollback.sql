drop statistics if exists users_role_status_statistics;
drop index if exists users_status_email_folded_idx;
drop index if exists users_role_email_folded_idx;
