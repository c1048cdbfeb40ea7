alter table refresh_tokens drop column if exists used_at;
drop index if exists sessions_expires_at_idx;
alter table sessions
    drop column if exists last_seen_at,
    drop column if exists idle_expires_at,
    drop column if exists user_agent,
    drop column if exists address;
