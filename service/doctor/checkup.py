"""Runs all checks in order, each under a deadline."""

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping

from service.doctor.database import check_database
from service.doctor.findings import Finding, fail
from service.doctor.machine import (
    check_data_dir,
    check_embedded,
    check_files,
    check_origin,
    check_passkeys,
    check_passwords,
    check_variables,
)
from service.doctor.mail import check_mail
from service.settings import Settings, SettingsError, load_settings


def examine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield findings as they come. Invalid settings are the only finding."""
    try:
        settings = load_settings(environ)
    except SettingsError as error:
        yield fail("settings", str(error), "docs/configuration.md lists the values to use.")
        return
    yield from check_variables(environ)
    yield from check_files(settings)
    yield from check_data_dir(settings)
    yield from _check_database(settings, environ)
    yield from check_passwords(settings)
    yield from check_origin(settings, environ)
    yield from check_passkeys(settings)
    yield from asyncio.run(check_mail(settings))


def _check_database(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    if settings.database is None:
        found, database, secret_key = check_embedded(settings, environ)
        yield from found
        if database is None:
            return
        settings = dataclasses.replace(settings, database=database, secret_key=secret_key)
    yield from asyncio.run(check_database(settings, environ))
