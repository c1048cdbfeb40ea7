-- depends: 0008.create-mail-outbox
--
-- Rate limits by the generic cell rate algorithm: one timestamp a key, the theoretical arrival time
-- of the next request. Unlogged: after a crash of the server everybody begins anew.
-- known_networks are where an account has signed in from before (IPv4 /32, IPv6 /64), which count
-- apart from the rest, so that an attack from elsewhere does not lock the owner out.

set local lock_timeout = '5s';

create unlogged table if not exists throttles (
    key bytea primary key,
    arrival_at timestamptz not null
);

create index if not exists throttles_arrival_at_idx on throttles (arrival_at);

create table if not exists known_networks (
    user_id uuid not null references users (id) on delete cascade,
    network cidr not null,
    last_seen_at timestamptz not null default now(),
    constraint known_networks_pkey primary key (user_id, network)
);
