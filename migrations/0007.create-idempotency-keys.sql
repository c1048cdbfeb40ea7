-- depends: 0006.create-action-tokens
--
-- An Idempotency-Key, its caller, the body it came with, and the answer it got. caller, fingerprint
-- are SHA-256; answer is sealed under SECRET_KEY, as it may hold tokens; it is null while the first
-- request is under way.

set local lock_timeout = '5s';

create table if not exists idempotency_keys (
    caller bytea not null,
    key text not null,
    fingerprint bytea not null,
    answer bytea,
    created_at timestamptz not null default now(),
    locked_until timestamptz not null,
    constraint idempotency_keys_pkey primary key (caller, key)
);

create index if not exists idempotency_keys_created_at_idx on idempotency_keys (created_at);
