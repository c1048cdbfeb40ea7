"""Variables that were probably meant as settings: misspelt, renamed, or guessed."""

import json
from pathlib import Path

import pytest

from service.settings import VARIABLES, Database
from service.settings.unknown import find_unknown
from tests.support.processes import run
from tests.support.shell import Shell

# Of a login shell, a desktop, tools of developers, and neighbours in a compose file.
LINUX = """
_ BASH_VERSION COLORTERM COLUMNS DBUS_SESSION_BUS_ADDRESS DEBIAN_FRONTEND DESKTOP_SESSION DISPLAY
EDITOR EUID GDMSESSION GPG_AGENT_INFO HISTFILE HISTSIZE HOME HOSTNAME HOSTTYPE http_proxy
https_proxy HTTP_PROXY HTTPS_PROXY IFS INFOPATH LANG LANGUAGE LC_ALL LC_CTYPE LESSOPEN LINES
LOGNAME LS_COLORS MACHTYPE MAIL MAILCHECK MAILPATH MANPATH NO_PROXY no_proxy OLDPWD OSTYPE PAGER
PATH PS1 PWD SESSION_MANAGER SHELL SHLVL SSH_AGENT_PID SSH_AUTH_SOCK SSH_CLIENT SSH_CONNECTION
SSH_TTY SUDO_COMMAND SUDO_GID SUDO_UID SUDO_USER TERM TERM_PROGRAM TMPDIR TZ UID USER USERNAME
VISUAL WAYLAND_DISPLAY WINDOWID XAUTHORITY XDG_CONFIG_DIRS XDG_CURRENT_DESKTOP XDG_DATA_DIRS
XDG_DATA_HOME XDG_RUNTIME_DIR XDG_SESSION_CLASS XDG_SESSION_ID XDG_SESSION_TYPE
PASSWORD_STORE_DIR PASSWORD_STORE_CLIP_TIME PASSWORD_STORE_GPG_OPTS
LD_LIBRARY_PATH MAKEFLAGS MAKELEVEL MAKE_TERMOUT MFLAGS NODE_ENV NODE_VERSION NPM_CONFIG_LOGLEVEL
NVM_DIR PIP_NO_CACHE_DIR PYTHONPATH PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHON_VERSION
PYTHON_SHA256 GPG_KEY RUST_LOG RUST_BACKTRACE SSL_CERT_DIR SSL_CERT_FILE VIRTUAL_ENV
VIRTUAL_ENV_PROMPT PYTEST_CURRENT_TEST PYTEST_XDIST_WORKER PYTEST_XDIST_WORKER_COUNT COVERAGE_RUN
PG_BINDIR PGAPPNAME PGCONNECT_TIMEOUT PGDATA PGDATABASE PGHOST PGHOSTADDR PGOPTIONS PGPASSFILE
PGPASSWORD PGPORT PGSERVICE PGSSLMODE PGSSLROOTCERT PGTARGETSESSIONATTRS PGUSER PG_MAJOR PG_VERSION
POSTGRES_DB POSTGRES_HOST_AUTH_METHOD POSTGRES_INITDB_ARGS POSTGRES_PASSWORD POSTGRES_USER
REDIS_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SECRET_KEY AWS_SESSION_TOKEN S3_SECRET_KEY
JWT_SECRET_KEY SECRET_KEY_BASE DJANGO_SECRET_KEY SENTRY_DSN SMTP_HOST SMTP_PASSWORD
GF_SECURITY_ADMIN_PASSWORD MYSQL_DATABASE MYSQL_ROOT_PASSWORD NGINX_HOST NGINX_PORT
OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_HEADERS OTEL_RESOURCE_ATTRIBUTES OTEL_SERVICE_NAME
OTEL_TRACES_SAMPLER OTEL_LOG_LEVEL OTEL_METRICS_EXPORTER OTEL_TRACES_EXPORTER OTEL_BSP_MAX_QUEUE_SIZE
PROMETHEUS_MULTIPROC_DIR SHINKEI_URL SHINKEI_IMAGE SHINKEI_VERSION ADMIN_EMAIL ADMIN_PASSWORD
"""
SYSTEMD = """
CACHE_DIRECTORY CONFIGURATION_DIRECTORY CREDENTIALS_DIRECTORY EXIT_CODE EXIT_STATUS FDSTORE
INVOCATION_ID JOURNAL_STREAM LISTEN_FDNAMES LISTEN_FDS LISTEN_PID LOGS_DIRECTORY MAINPID MANAGERPID
MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE MONITOR_UNIT NOTIFY_SOCKET PIDFILE REMOTE_ADDR
REMOTE_PORT RUNTIME_DIRECTORY SERVICE_RESULT STATE_DIRECTORY SYSTEMD_EXEC_PID SYSTEMD_LOG_LEVEL
SYSTEMD_NSS_DYNAMIC_BYPASS TRIGGER_PATH TRIGGER_TIMER_REALTIME_USEC TRIGGER_UNIT WATCHDOG_PID
WATCHDOG_USEC
"""
CI = """
CI CI_COMMIT_SHA CI_JOB_ID CI_JOB_TOKEN CI_PIPELINE_ID CI_PROJECT_DIR CI_REGISTRY_PASSWORD
CI_SERVER_HOST CI_SERVER_PORT ACTIONS_CACHE_URL ACTIONS_ID_TOKEN_REQUEST_TOKEN
ACTIONS_ID_TOKEN_REQUEST_URL ACTIONS_RESULTS_URL ACTIONS_RUNTIME_TOKEN ACTIONS_RUNTIME_URL
ACTIONS_STEP_DEBUG AGENT_TOOLSDIRECTORY ANDROID_HOME ANT_HOME CHROMEWEBDRIVER CHROME_BIN
DEPLOYMENT_BASEPATH DOTNET_NOLOGO GITHUB_ACTION GITHUB_ACTIONS GITHUB_ACTION_PATH GITHUB_ACTOR
GITHUB_API_URL GITHUB_BASE_REF GITHUB_ENV GITHUB_EVENT_NAME GITHUB_EVENT_PATH GITHUB_GRAPHQL_URL
GITHUB_HEAD_REF GITHUB_JOB GITHUB_OUTPUT GITHUB_PATH GITHUB_REF GITHUB_REF_NAME GITHUB_REPOSITORY
GITHUB_RETENTION_DAYS GITHUB_RUN_ID GITHUB_SERVER_URL GITHUB_SHA GITHUB_STATE GITHUB_STEP_SUMMARY
GITHUB_TOKEN GITHUB_WORKFLOW GITHUB_WORKSPACE GRADLE_HOME ImageOS ImageVersion JAVA_HOME
RUNNER_ARCH RUNNER_DEBUG RUNNER_ENVIRONMENT RUNNER_NAME RUNNER_OS RUNNER_TEMP RUNNER_TOOL_CACHE
RUNNER_TRACKING_ID RUNNER_WORKSPACE SELENIUM_JAR_PATH STATS_NMP STATS_RDCL VCPKG_INSTALLATION_ROOT
container DOCKER_CONFIG DOCKER_HOST DOCKER_TLS_VERIFY DOCKER_CERT_PATH COMPOSE_FILE
COMPOSE_PROJECT_NAME BUILDKIT_PROGRESS
"""


def links(service: str, port: int, protocol: str = "tcp") -> dict[str, str]:
    """Return the variables that Kubernetes gives to every container for a service."""
    url, upper = f"{protocol}://10.96.0.7:{port}", protocol.upper()
    one = f"{service}_PORT_{port}_{upper}"
    return {
        f"{service}_SERVICE_HOST": "10.96.0.7",
        f"{service}_SERVICE_PORT": str(port),
        f"{service}_SERVICE_PORT_{upper}_MAIN": str(port),
        f"{service}_PORT": url,
        one: url,
        f"{one}_PROTO": protocol,
        f"{one}_PORT": str(port),
        f"{one}_ADDR": "10.96.0.7",
    }


KUBERNETES = {
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "POD_IP": "10.0.0.1",
    "POD_NAMESPACE": "default",
    "NODE_NAME": "node-1",
    **links("KUBERNETES", 443),
    **links("DB_PRIMARY", 5432),
    **links("MAIL", 25),
    **links("MAIL_RELAY", 53, "udp"),
    **links("SHINKEI", 8080),
    **links("THROTTLE", 80, "sctp"),
    # With docker run --link.
    "DB_NAME": "/app/db",
    "DB_ENV_POSTGRES_PASSWORD": "hush",
}


@pytest.mark.parametrize(
    "environ",
    [dict.fromkeys(names.split(), "value") for names in (LINUX, SYSTEMD, CI)] + [KUBERNETES],
    ids=["linux", "systemd", "ci", "kubernetes"],
)
def test_variables_of_other_programs_cause_no_warning(environ: dict[str, str]) -> None:
    assert [str(unknown) for unknown in find_unknown(environ)] == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DB_POOLSIZE", "DB_POOL_SIZE"),
        ("DB_PASSWORD", "DB_PASS"),
        ("DB_USERNAME", "DB_USER"),
        ("DB_CONNECT_TIMEOUT", "DB_CONNECT_TIMEOUT_S"),
        ("db_pool_size", "DB_POOL_SIZE"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("MAIL_FORM", "MAIL_FROM"),
        ("THROTTLE_LOGIN_PER_IP", "THROTTLE_SIGN_IN_PER_IP"),
        ("PASSWORD_MINIMUM_LENGTH", "PASSWORD_MIN_LENGTH"),
        ("LOG_LEVLE", "LOG_LEVEL"),
        ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
        ("ACCESS_TOKEN_TTL", "ACCESS_TOKEN_TTL_S"),
        ("SECRETKEY", "SECRET_KEY"),
        ("SHINKEI_PORT", "PORT"),
        ("SHINKEI_DATABASE_URL", "DATABASE_URL"),
        ("SHINKEI_DB_PASSWORD", "DB_PASS"),
        ("SHINKEI_DB_POOLSIZE", "DB_POOL_SIZE"),
        ("SHINKEI_LOG_LEVLE", "LOG_LEVEL"),
        ("SHINKEI_THROTTLE_MAIL_PER_ADDRESS", "THROTTLE_MAIL_PER_IP"),
        ("THROTTLE_MAIL_PER_ADDRESS", "THROTTLE_MAIL_PER_IP"),
    ],
)
def test_name_that_was_probably_meant_is_suggested(name: str, meant: str) -> None:
    (unknown,) = find_unknown({name: "hush"})
    assert str(unknown) == f"{name} is not a setting of Shinkei. Did you mean {meant}?"


@pytest.mark.parametrize("name", ["MAIL_HOST", "MAIL_PORT", "DB_DATABASE", "PASSWORD_HASH_QUEUE"])
def test_variable_like_no_setting_is_named_without_a_suggestion(name: str) -> None:
    (unknown,) = find_unknown({name: "hush"})
    assert str(unknown) == f"{name} is not a setting of Shinkei."


def test_known_and_empty_variables_cause_no_warning() -> None:
    assert list(find_unknown(dict.fromkeys(VARIABLES, "value"))) == []
    assert list(find_unknown({"DB_POOLSIZE": " "})) == []


async def test_commands_name_an_unknown_variable_on_stderr(
    database: Database, tmp_path: Path
) -> None:
    commands = ("openapi", "migrate --status", "users list", "keys list")
    shell = Shell(database, tmp_path)
    for result in await shell(*(f"DB_POOLSIZE=hush {command}" for command in commands)):
        assert result.code == 0
        assert result.stderr.splitlines()[0] == (
            "shinkei: DB_POOLSIZE is not a setting of Shinkei. Did you mean DB_POOL_SIZE?"
        )
        assert "hush" not in result.stderr


def test_serve_logs_an_unknown_variable(tmp_path: Path) -> None:
    """The service then cannot listen on an IP of another machine, and ends."""
    result = run("serve", cwd=tmp_path, HOST="203.0.113.7", DB_POOLSIZE="hush", MAIL_HOST="hush")
    logged, other = map(json.loads, result.stderr.splitlines()[:2])
    assert (logged["level"], logged["event"]) == ("warning", "unknown variable")
    assert (logged["variable"], logged["did_you_mean"]) == ("DB_POOLSIZE", "DB_POOL_SIZE")
    assert (other["variable"], other["did_you_mean"]) == ("MAIL_HOST", None)
    assert "hush" not in result.stderr
