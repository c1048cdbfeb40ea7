"""What importing the application takes along: every command and worker waits for it."""

from tests.support.processes import run_python

# Imported where they are used: 100 ms together, half as much as the rest takes.
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


def test_the_application_imports_nothing_before_its_time() -> None:
    base = "import aiohttp.web, asyncpg, marshmallow, uvloop"
    script = "import sys, service.app; print(*sys.modules)"
    imported = run_python(f"{base}; {script}")
    assert imported.returncode == 0, imported.stderr
    assert not LATER & set(imported.stdout.split())
