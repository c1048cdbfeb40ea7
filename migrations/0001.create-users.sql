-- Accounts.
--
-- email is the address as it was given, normalised; email_folded is its caseless form, made by
-- service.fields.fold_email, which is what makes an address one account's.
-- password_hash is null for an account that cannot sign in with a password.
-- version counts the changes: it is the ETag.

set local lock_timeout = '5s';

create table if not exists users (
    id uuid primary key,
    email text not null,
    email_folded text not null,
    email_verified_at timestamptz,
    name text not null default '',
    password_hash text,
    role text not null default 'user',
    settings jsonb not null default '{}',
    version bigint not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint users_email_folded_key unique (email_folded),
    constraint users_role_check check (role in ('user', 'support', 'admin')),
    constraint users_settings_check check (jsonb_typeof(settings) = 'object')
);
