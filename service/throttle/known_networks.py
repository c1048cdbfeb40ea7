"""The networks that each account has signed in from."""

import uuid

import asyncpg
from aiohttp import web

from service.db.connection import Connection
from service.http.client_ip import Network, network_of

KNOWN_NETWORKS_MAX = 20
# Well beyond the default session lifetime, so that an owner who returns after a break is known.
KNOWN_NETWORKS_DAYS = 180
DELETE_BATCH = 20_000


async def remember_network(conn: Connection, request: web.Request, user_id: uuid.UUID) -> None:
    """Add the client's network to the account's, keeping the ``KNOWN_NETWORKS_MAX`` newest.

    Call it only after the client has proved to be the owner, by a password or an emailed link.
    """
    network = network_of(request)
    if network is None:
        return
    await conn.execute(
        """
        with seen as (
            insert into known_networks (user_id, network) values ($1, $2)
            on conflict on constraint known_networks_pkey do update set last_seen_at = now()
        )
        delete from known_networks
        where user_id = $1 and network in (
            select network from known_networks
            where user_id = $1 and network <> $2
            order by last_seen_at desc
            offset $3
        )
        """,
        user_id,
        network,
        KNOWN_NETWORKS_MAX - 1,
    )


async def is_known_network(conn: Connection, account: str, network: Network) -> bool:
    """Return whether the account, if it exists, has signed in from the network before."""
    known: bool = await conn.fetchval(
        """
        select exists (
            select from users
            join known_networks on known_networks.user_id = users.id
            where users.email_folded = $1 and known_networks.network = $2
        )
        """,
        account,
        network,
    )
    return known


async def forget_networks_of(conn: Connection, user_id: uuid.UUID) -> None:
    """Delete the account's networks, because they may be somebody else's."""
    await conn.execute("delete from known_networks where user_id = $1", user_id)


async def export_networks(conn: Connection, user_id: uuid.UUID) -> list[asyncpg.Record]:
    """Return the account's networks, most recently seen last."""
    return await conn.fetch(
        """
        select network::text as network, last_seen_at from known_networks
        where user_id = $1 order by last_seen_at
        """,
        user_id,
    )


async def forget_networks(app: web.Application, conn: Connection) -> None:
    """Delete some of the networks not seen for ``KNOWN_NETWORKS_DAYS``."""
    await conn.execute(
        """
        delete from known_networks where (user_id, network) in (
            select user_id, network from known_networks
            where last_seen_at < now() - make_interval(days => $1) limit $2
        )
        """,
        KNOWN_NETWORKS_DAYS,
        DELETE_BATCH,
    )
