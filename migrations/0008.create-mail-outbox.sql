-- depends: 0007.create-idempotency-keys
--
-- Mail to be sent, written in the transaction that it tells of. message is the rendered mail, sealed
-- under SECRET_KEY, as it holds links that are secret; the row goes once the mail is sent.

set local lock_timeout = '5s';

create table if not exists mail_outbox (
    id uuid primary key,
    message bytea not null,
    attempts integer not null default 0,
    created_at timestamptz not null default now(),
    next_attempt_at timestamptz not null default now(),
    expires_at timestamptz not null
);

create index if not exists mail_outbox_next_attempt_at_idx on mail_outbox (next_attempt_at);
