-- depends: 0006.create-action-tokens
--
-- An Idempotency-Key, its caller, the request it came with, and the answer it got, written in the
-- transaction that did what was asked. caller and fingerprint are SHA-256; answer is sealed under
-- SECRET_KEY, as it may hold tokens.

set local lock_timeout = '5s';

create table if not exists idempotency_keys (
    caller bytea not null,
    key text not null,
    fingerprint bytea not null,
    answer bytea not null,
    created_at timestamptz not null default now(),
    constraint idempotency_keys_pkey primary key (caller, key)
);

create index if not exists idempotency_keys_created_at_idx on idempotency_keys (created_at);
