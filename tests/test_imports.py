"""Modules loaded with the application, since every command and worker waits for them."""

from tests.support.processes import run_python

# Slow to import, so they are imported only where they are used.
LATER = {
    "aiosmtplib",
    "apispec",
    "argon2",
    "cryptography",
    "email_validator",
    "joserfc",
    "opentelemetry",
    "prometheus_client",
    "psycopg",
    "rich",
    "yoyo",
}


def test_application_defers_slow_imports() -> None:
    base = "import aiohttp.web, asyncpg, marshmallow, uvloop"
    script = "import sys, service.app; print(*sys.modules)"
    imported = run_python(f"{base}; {script}")
    assert imported.returncode == 0, imported.stderr
    assert not LATER & set(imported.stdout.split())
