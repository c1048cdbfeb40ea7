-- depends: 0023.record-assurance
--
-- Second factors and passkeys. A factor is an app that makes one-time codes (TOTP, RFC 6238), whose
-- secret is sealed, or a passkey (WebAuthn), of which the public key is stored. A TOTP factor works
-- once it is confirmed with a code. last_step is the time step of the last code that was accepted:
-- each code is good once. failures counts wrong codes in a row.
--
-- Recovery codes are stored as HMACs. Their key, users.recovery_key, is random and sealed, so that
-- SECRET_KEY can be replaced. users.passkey_handle is what authenticators know an account by, which
-- is not its id (WebAuthn Level 3, 14.6.1).
--
-- sign_in_challenges are sign-ins whose password was right, and which still need a second factor.
-- Like a session, one is live only in its account's epoch. throttle_counts are what the sign-in has
-- taken from the limits so far. used_challenges are those of passkeys that were accepted, which are
-- not stored before.

set local lock_timeout = '5s';

alter table users
    add column if not exists recovery_key bytea,
    add column if not exists passkey_handle bytea;

-- For resealing, which looks for them among a million accounts.
create index if not exists users_recovery_key_idx on users (id) where recovery_key is not null;

create table if not exists factors (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    type text not null
        constraint factors_type_check check (type in ('totp', 'passkey')),
    name text not null,
    created_at timestamptz not null default now(),
    confirmed_at timestamptz,
    last_used_at timestamptz,
    sealed_secret bytea,
    last_step bigint,
    failures integer not null default 0,
    credential_id bytea constraint factors_credential_id_key unique,
    public_key bytea,
    sign_count bigint,
    backup_eligible boolean,
    backed_up boolean,
    transports text[],
    aaguid uuid,
    constraint factors_totp_check check (type <> 'totp' or sealed_secret is not null),
    constraint factors_passkey_check check (
        type <> 'passkey' or num_nulls(
            confirmed_at, credential_id, public_key, sign_count, backup_eligible, backed_up,
            transports, aaguid
        ) = 0
    )
);

create index if not exists factors_user_id_id_idx on factors (user_id, id);
create index if not exists factors_pending_idx on factors (created_at) where confirmed_at is null;

create table if not exists recovery_codes (
    user_id uuid not null references users (id) on delete cascade,
    code_hmac bytea not null,
    primary key (user_id, code_hmac)
);

create table if not exists sign_in_challenges (
    token_hash bytea primary key,
    user_id uuid not null references users (id) on delete cascade,
    epoch integer not null,
    amr text[] not null,
    tries_left smallint not null,
    throttle_counts jsonb not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);

create index if not exists sign_in_challenges_user_id_created_at_idx
    on sign_in_challenges (user_id, created_at);
create index if not exists sign_in_challenges_expires_at_idx on sign_in_challenges (expires_at);

create table if not exists used_challenges (
    challenge_hash bytea primary key,
    expires_at timestamptz not null
);

create index if not exists used_challenges_expires_at_idx on used_challenges (expires_at);
