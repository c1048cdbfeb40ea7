-- depends: 0020.record-who-acts
--
-- users.email_folded was the whole email in Unicode's case folding, which also joined the domains
-- that DNS tells apart: ß became ss, and ς became σ. Now only the local part is folded, and the
-- domain is the one in users.email, which has one spelling for each A-label. Nothing is folded
-- here. No other letter of a domain was changed by folding, so only accounts with one of these two
-- are rewritten. The new form tells apart all that the old one did, so no two accounts can clash.
-- Whoever was refused because of such an account can register now.
--
-- users is read once. Meanwhile, requests wait if they write to it, sign in or use a link; others
-- of signed-in accounts do not. Replicas of the previous version write the old form: the trigger
-- corrects it, so that they neither lose an account nor add a second one. They do not find the
-- accounts with these two letters, whose owners can sign in again once the newer replicas have
-- taken over. The trigger can be dropped when the previous version is gone.
--
-- A link that has verified or changed an email is kept under a purpose of its own for a day, so
-- that opening it again is not an error. The previous version does not ask for these purposes.
--
-- The service locks the two tables in either order: using a link reads action_tokens first, and
-- sending one locks the account first. So both are locked at the start, and waiting for the second
-- releases the first. Otherwise this could deadlock with the service's transactions.

set local lock_timeout = '5s';
set local statement_timeout = 0;

do $$
declare
    deadline constant timestamptz := clock_timestamp() + interval '5 seconds';
begin
    loop
        begin
            -- Keeps out transactions that lock rows first and update them later.
            lock table users in exclusive mode;
            lock table action_tokens in access exclusive mode nowait;
            exit;
        exception when lock_not_available then
            if clock_timestamp() > deadline then
                raise;
            end if;
            perform pg_sleep(0.05);
        end;
    end loop;
end
$$;

create or replace function keep_email_domain() returns trigger language plpgsql as $$
begin
    new.email_folded :=
        substring(new.email_folded from '^.*@') || substring(new.email from '[^@]*$');
    return new;
end
$$;

do $$
begin
    if not exists (
        select from pg_trigger
        where tgname = 'users_keep_email_domain' and tgrelid = 'users'::regclass
    ) then
        create trigger users_keep_email_domain
            before insert or update of email, email_folded on users
            for each row when (new.email like any (array['%ß%', '%ς%']))
            execute function keep_email_domain();
    end if;
end
$$;

-- The trigger corrects these rows.
update users set email_folded = email_folded
where email like any (array['%ß%', '%ς%'])
  and substring(email_folded from '[^@]*$') <> substring(email from '[^@]*$');

do $$
begin
    if not exists (
        select from pg_constraint
        where conrelid = 'action_tokens'::regclass and conname = 'action_tokens_purpose_check'
          and pg_get_constraintdef(oid) like '%email_verified%'
    ) then
        alter table action_tokens
            drop constraint if exists action_tokens_purpose_check,
            add constraint action_tokens_purpose_check check (purpose in (
                'password_reset', 'email_verify', 'email_change', 'email_revert',
                'email_verified', 'email_changed'
            ));
    end if;
end
$$;
