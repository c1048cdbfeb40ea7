"""All faults."""

from tests.faults import (
    of_clients,
    of_clocks,
    of_mail,
    of_networks,
    of_pgbouncer,
    of_postgres,
    of_replicas,
    of_services,
    of_sign_ins,
)

FAULTS = [
    fault
    for module in (
        of_postgres,
        of_networks,
        of_pgbouncer,
        of_replicas,
        of_services,
        of_clients,
        of_mail,
        of_clocks,
        of_sign_ins,
    )
    for fault in module.FAULTS
]
