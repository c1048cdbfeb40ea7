-- depends: 0001.create-users
--
-- A session is one sign-in. Ending it is deleting its row: its access tokens, which name it, and its
-- refresh tokens, of which only the SHA-256 is stored, end with it.

set local lock_timeout = '5s';

create table if not exists sessions (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);

create index if not exists sessions_user_id_idx on sessions (user_id);

create table if not exists refresh_tokens (
    token_hash bytea primary key,
    session_id uuid not null references sessions (id) on delete cascade,
    created_at timestamptz not null default now()
);

create index if not exists refresh_tokens_session_id_idx on refresh_tokens (session_id);
