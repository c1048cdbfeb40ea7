"""SQL for second factors and recovery codes."""

import uuid
from collections.abc import Sequence
from datetime import datetime

import asyncpg

from service.accounts import credential_queries as credentials
from service.db.connection import Connection

# Wrong codes in a row after which an app's codes are no longer accepted (NIST SP 800-63B-4 §3.2.2).
FAILURES_MAX = 100
# How long an app may take to be confirmed.
PENDING_TTL_S = 3600

_CONFIRMED = "confirmed_at is not null"
# Factors of the account $1 that accept codes now.
_ACCEPTS_CODES = f"""
    user_id = $1 and type = 'totp' and {_CONFIRMED} and failures < {FAILURES_MAX}
"""
FACTOR = "id, type, name, created_at, last_used_at"


async def list_factors(conn: Connection, user_id: uuid.UUID) -> list[asyncpg.Record]:
    """Return the account's confirmed factors, oldest first."""
    return await conn.fetch(
        f"select {FACTOR} from factors where user_id = $1 and {_CONFIRMED} order by id",  # noqa: S608
        user_id,
    )


async def count_factors(conn: Connection, user_id: uuid.UUID, type_: str) -> int:
    count: int = await conn.fetchval(
        f"select count(*) from factors where user_id = $1 and type = $2 and {_CONFIRMED}",  # noqa: S608
        user_id,
        type_,
    )
    return count


async def count_recovery_codes(conn: Connection, user_id: uuid.UUID) -> int:
    count: int = await conn.fetchval(
        "select count(*) from recovery_codes where user_id = $1", user_id
    )
    return count


async def find_usable(conn: Connection, user_id: uuid.UUID) -> list[str]:
    """Return what the account can sign in with after its password."""
    row = await conn.fetchrow(
        f"""
        select exists (select from factors where {_ACCEPTS_CODES}) as totp,
               exists (select from factors where user_id = $1 and type = 'passkey') as passkey,
               exists (select from recovery_codes where user_id = $1) as recovery_code
        """,  # noqa: S608
        user_id,
    )
    assert row is not None  # noqa: S101
    return [name for name, usable in row.items() if usable]


async def has_second_factor(conn: Connection, user_id: uuid.UUID) -> bool:
    has: bool = await conn.fetchval(
        f"select exists (select from factors where user_id = $1 and {_CONFIRMED})",  # noqa: S608
        user_id,
    )
    return has


# Apps (TOTP)


async def insert_pending_totp(
    conn: Connection, *, factor_id: uuid.UUID, user_id: uuid.UUID, name: str, sealed_secret: bytes
) -> None:
    """Insert an app that is to be confirmed, in place of others that are."""
    await delete_pending(conn, user_id)
    await conn.execute(
        """
        insert into factors (id, user_id, type, name, sealed_secret)
        values ($1, $2, 'totp', $3, $4)
        """,
        factor_id,
        user_id,
        name,
        sealed_secret,
    )


async def find_pending_totp(
    conn: Connection, user_id: uuid.UUID, factor_id: uuid.UUID
) -> asyncpg.Record | None:
    """Return the app to be confirmed, with the database's time."""
    return await conn.fetchrow(
        f"""
        select id, type, sealed_secret, last_step,
               extract(epoch from clock_timestamp())::float8 as unix_time_s
        from factors
        where id = $2 and user_id = $1 and type = 'totp' and not {_CONFIRMED}
          and created_at > now() - make_interval(secs => {PENDING_TTL_S})
        """,  # noqa: S608
        user_id,
        factor_id,
    )


async def confirm_totp(conn: Connection, factor_id: uuid.UUID, step: int) -> None:
    """Confirm a pending app with the code of a step, which is then used."""
    await conn.execute(
        """
        update factors set confirmed_at = now(), last_used_at = now(), last_step = $2
        where id = $1
        """,
        factor_id,
        step,
    )


async def list_totp(conn: Connection, user_id: uuid.UUID) -> list[asyncpg.Record]:
    """Return the apps that accept codes, each with the database's time."""
    return await conn.fetch(
        f"""
        select id, sealed_secret, last_step, failures,
               extract(epoch from clock_timestamp())::float8 as unix_time_s
        from factors where {_ACCEPTS_CODES} order by id
        """,  # noqa: S608
        user_id,
    )


async def count_failure(conn: Connection, user_id: uuid.UUID) -> None:
    """Count a wrong code against the apps that accept codes."""
    await conn.execute(
        f"update factors set failures = failures + 1 where {_ACCEPTS_CODES}",  # noqa: S608
        user_id,
    )


async def use_step(conn: Connection, user_id: uuid.UUID, factor_id: uuid.UUID, step: int) -> None:
    """Use up the codes of a time step, and those before. The account must be locked.

    The count of wrong codes starts again from zero for all its apps.
    """
    await conn.execute(
        "update factors set last_step = $2, last_used_at = now() where id = $1", factor_id, step
    )
    await conn.execute(
        "update factors set failures = 0 where user_id = $1 and failures > 0", user_id
    )


# Passkeys


async def list_passkeys(conn: Connection, user_id: uuid.UUID) -> list[asyncpg.Record]:
    """Return the ids and transports of the account's credentials."""
    return await conn.fetch(
        """
        select credential_id, transports from factors
        where user_id = $1 and type = 'passkey' order by id
        """,
        user_id,
    )


async def insert_passkey(
    conn: Connection,
    *,
    factor_id: uuid.UUID,
    user_id: uuid.UUID,
    name: str,
    credential_id: bytes,
    public_key: bytes,
    sign_count: int,
    backup_eligible: bool,
    backed_up: bool,
    transports: Sequence[str],
    aaguid: uuid.UUID,
) -> asyncpg.Record | None:
    """Insert a passkey and return it, or None if some account already has its credential id."""
    return await conn.fetchrow(
        f"""
        insert into factors (
            id, user_id, type, name, confirmed_at, credential_id, public_key, sign_count,
            backup_eligible, backed_up, transports, aaguid
        )
        values ($1, $2, 'passkey', $3, now(), $4, $5, $6, $7, $8, $9, $10)
        on conflict on constraint factors_credential_id_key do nothing
        returning {FACTOR}
        """,  # noqa: S608
        factor_id,
        user_id,
        name,
        credential_id,
        public_key,
        sign_count,
        backup_eligible,
        backed_up,
        transports,
        aaguid,
    )


async def find_passkey(conn: Connection, credential_id: bytes) -> asyncpg.Record | None:
    """Return the passkey with its account's id and handle."""
    return await conn.fetchrow(
        """
        select factors.id, factors.user_id, credential_id, public_key, sign_count, backup_eligible,
               users.passkey_handle
        from factors
        join users on users.id = factors.user_id
        where credential_id = $1
        """,
        credential_id,
    )


async def use_passkey(
    conn: Connection, factor_id: uuid.UUID, old_count: int, new_count: int, *, backed_up: bool
) -> bool:
    """Note the use of a passkey. Return False if its counter has changed since it was checked.

    Authenticators that do not count send 0 each time.
    """
    status = await conn.execute(
        """
        update factors set sign_count = $3, backed_up = $4, last_used_at = now()
        where id = $1 and sign_count = $2
        """,
        factor_id,
        old_count,
        new_count,
        backed_up,
    )
    return status == "UPDATE 1"


# Any factor


async def rename_factor(
    conn: Connection, user_id: uuid.UUID, factor_id: uuid.UUID, name: str
) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"""
        update factors set name = $3 where id = $2 and user_id = $1 and {_CONFIRMED}
        returning {FACTOR}
        """,  # noqa: S608
        user_id,
        factor_id,
        name,
    )


async def delete_factor(
    conn: Connection, user_id: uuid.UUID, factor_id: uuid.UUID
) -> list[asyncpg.Record]:
    """Delete a confirmed factor and return it, in a list that is empty if there is none."""
    return await conn.fetch(
        f"""
        delete from factors where id = $2 and user_id = $1 and {_CONFIRMED} returning {FACTOR}
        """,  # noqa: S608
        user_id,
        factor_id,
    )


async def delete_factors(
    conn: Connection, user_id: uuid.UUID, since: datetime | None = None
) -> list[asyncpg.Record]:
    """Delete the account's factors, or those confirmed ``since``. Return the confirmed ones.

    Pending ones always go.
    """
    await delete_pending(conn, user_id)
    return await conn.fetch(
        f"""
        delete from factors where user_id = $1 and ($2::timestamptz is null or confirmed_at >= $2)
        returning {FACTOR}
        """,  # noqa: S608
        user_id,
        since,
    )


async def delete_pending(conn: Connection, user_id: uuid.UUID) -> None:
    await conn.execute(f"delete from factors where user_id = $1 and not {_CONFIRMED}", user_id)  # noqa: S608


# Recovery codes


async def replace_recovery_codes(
    conn: Connection, user_id: uuid.UUID, sealed_key: bytes, hashes: Sequence[bytes]
) -> None:
    await credentials.set_recovery_key(conn, user_id, sealed_key)
    await conn.execute("delete from recovery_codes where user_id = $1", user_id)
    # Sent as text, as asyncpg would look up the type of another array.
    await conn.execute(
        """
        insert into recovery_codes (user_id, code_hmac)
        select $1, decode(code, 'hex') from unnest($2::text[]) as code
        """,
        user_id,
        [each.hex() for each in hashes],
    )


async def use_recovery_code(conn: Connection, user_id: uuid.UUID, code_hmac: bytes) -> bool:
    """Delete the code. Return whether it was there: of concurrent calls, one finds it."""
    status = await conn.execute(
        "delete from recovery_codes where user_id = $1 and code_hmac = $2", user_id, code_hmac
    )
    return status == "DELETE 1"


async def delete_recovery_codes(conn: Connection, user_id: uuid.UUID) -> None:
    await conn.execute("delete from recovery_codes where user_id = $1", user_id)
    await credentials.set_recovery_key(conn, user_id, None)


async def delete_expired(conn: Connection, rows_max: int) -> None:
    """Delete some of the apps that were not confirmed in time."""
    await conn.execute(
        f"""
        delete from factors where id in (
            select id from factors
            where not {_CONFIRMED} and created_at < now() - make_interval(secs => {PENDING_TTL_S})
            limit $1
        )
        """,  # noqa: S608
        rows_max,
    )
