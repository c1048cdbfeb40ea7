"""nginx, configured by the blocks in the documents, in front of a test's service."""

import contextlib
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.clients import ROOT
from tests.support.processes import run_command, started
from tests.support.programs import require
from tests.support.tls import self_signed
from tests.support.waiting import eventually_blocking

_BLOCK = re.compile(r"^```nginx\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a distribution's nginx.conf may have, at its worst for a service behind it.
_AROUND = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    gzip_proxied any;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{block}
}}
"""


class Nginx(NamedTuple):
    """A running nginx: its URLs, what verifies its certificate, and the directory of its files."""

    url: str
    http_url: str
    trust: ssl.SSLContext
    directory: Path

    def logged(self) -> str:
        return (self.directory / "log" / "accounts.log").read_text()


def documented_blocks() -> dict[str, str]:
    """Return all nginx blocks of the documents, by a name for each."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {
        f"{path.name}-{number}": block
        for path in documents
        for number, block in enumerate(_BLOCK.findall(path.read_text()))
    }


@contextlib.contextmanager
def behind_nginx(
    directory: Path, service_port: int, https_port: int, http_port: int, **changes: str
) -> Iterator[Nginx]:
    """Run nginx with the block of docs/deployment.md, whose ports and paths are replaced.

    ``changes`` replaces the values of further directives.
    """
    (block,) = (block for name, block in documented_blocks().items() if "deployment" in name)
    for directive, value in changes.items():
        block = _replace(block, rf"\b{directive} [^;]+;", f"{directive} {value};")
    _write(directory, block, service_port, https_port, http_port)
    program = require("nginx", "/usr/sbin/nginx")
    command = (program, "-p", str(directory), "-c", str(directory / "nginx.conf"))
    with started(*command) as process:
        eventually_blocking(lambda: (directory / "nginx.pid").exists() or process.poll())
        assert process.poll() is None, (directory / "error.log").read_text()
        yield Nginx(
            f"https://127.0.0.1:{https_port}",
            f"http://127.0.0.1:{http_port}",
            ssl.create_default_context(cafile=directory / "server.pem"),
            directory,
        )


def errors_of(directory: Path, block: str) -> str:
    """Return what ``nginx -t`` says about the block; empty if nothing."""
    _write(directory, block, 8080, 8443, 8000)
    program = require("nginx", "/usr/sbin/nginx")
    checked = run_command(
        program, "-t", "-q", "-p", str(directory), "-c", str(directory / "nginx.conf")
    )
    return checked.stderr if checked.stderr or checked.returncode == 0 else "failed"


def _write(directory: Path, block: str, service_port: int, https_port: int, http_port: int) -> None:
    """Write the configuration, the certificate and a front end of one page."""
    directory.mkdir(exist_ok=True)
    self_signed(directory / "server.pem")
    for name in ("log", "front"):
        (directory / name).mkdir()
    (directory / "front" / "index.html").write_text("the front end")
    for pattern, replacement in {
        r"\b127\.0\.0\.1:8080;": f"127.0.0.1:{service_port};",
        r"\blisten 443 ssl;": f"listen 127.0.0.1:{https_port} ssl;",
        r"\blisten 80;": f"listen 127.0.0.1:{http_port};",
        r"/etc/ssl/\S+\.(pem|key);": f"{directory}/server.pem;",
        r"/var/log/nginx/": f"{directory}/log/",
        r"/srv/accounts;": f"{directory}/front;",
    }.items():
        block = _replace(block, pattern, replacement)
    (directory / "nginx.conf").write_text(_AROUND.format(directory=directory, block=block))


def _replace(block: str, pattern: str, replacement: str) -> str:
    replaced, found = re.subn(pattern, replacement, block)
    assert found, f"the document has no {pattern}"
    return replaced
