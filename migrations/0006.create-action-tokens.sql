-- depends: 0005.extend-users
--
-- What a link in a mail proves: one use, for one purpose, for a while. Only the SHA-256 is stored.
-- email is the address that the link was sent to, or, to change or give back an address, the one
-- that it would make the account's.

set local lock_timeout = '5s';

create table if not exists action_tokens (
    token_hash bytea primary key,
    purpose text not null,
    user_id uuid not null references users (id) on delete cascade,
    email text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    constraint action_tokens_purpose_check
        check (purpose in ('password_reset', 'email_verify', 'email_change', 'email_revert'))
);

create index if not exists action_tokens_user_id_idx on action_tokens (user_id, purpose);
create index if not exists action_tokens_expires_at_idx on action_tokens (expires_at);
