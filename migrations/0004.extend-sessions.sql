-- depends: 0003.create-signing-keys
--
-- What an owner is shown of a session, and how it ends by itself: expires_at whatever happens,
-- idle_expires_at unless it is refreshed. A used refresh token keeps its row until the session
-- ends, so that a replay is recognised.

set local lock_timeout = '5s';

alter table sessions
    add column if not exists last_seen_at timestamptz not null default now(),
    add column if not exists idle_expires_at timestamptz not null default 'infinity',
    add column if not exists user_agent text not null default '',
    add column if not exists address inet;

create index if not exists sessions_expires_at_idx on sessions (least(expires_at, idle_expires_at));

alter table refresh_tokens
    add column if not exists used_at timestamptz;
