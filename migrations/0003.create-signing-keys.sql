-- depends: 0002.create-sessions
--
-- The keys that sign access tokens. id is the JWK thumbprint (RFC 7638), which tokens carry as kid;
-- encrypted_key is the private JWK under AES-256-GCM: see service.auth.tokens.

set local lock_timeout = '5s';

create table if not exists signing_keys (
    id text primary key,
    encrypted_key bytea not null,
    created_at timestamptz not null default now()
);
