-- Accounts whose old form belongs to another account by now keep the new one. The previous version
-- does not find them.

set local lock_timeout = '5s';
set local statement_timeout = 0;

-- Releases the first lock while it waits for the second: see the migration.
do $$
declare
    deadline constant timestamptz := clock_timestamp() + interval '5 seconds';
begin
    loop
        begin
            -- Dropping the trigger takes this lock.
            lock table users in access exclusive mode;
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

drop trigger if exists users_keep_email_domain on users;
drop function if exists keep_email_domain();

with folded as (
    select id, email,
           substring(email_folded from '^.*@')
           || replace(replace(substring(email from '[^@]*$'), 'ß', 'ss'), 'ς', 'σ') as old_form
    from users
    where email like any (array['%ß%', '%ς%'])
)
update users set email_folded = folded.old_form
from folded
where users.id = folded.id and users.email_folded <> folded.old_form
  and not exists (select from users as other where other.email_folded = folded.old_form)
  -- If several accounts have one old form, the first to have registered gets it.
  and not exists (
      select from folded as other
      where other.old_form = folded.old_form and other.id < folded.id
  );

delete from action_tokens where purpose in ('email_verified', 'email_changed');
alter table action_tokens
    drop constraint if exists action_tokens_purpose_check,
    add constraint action_tokens_purpose_check
        check (purpose in ('password_reset', 'email_verify', 'email_change', 'email_revert'));
