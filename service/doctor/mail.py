"""The mail server: is it reached, trusted, signed in to, and does it take our sender?"""

import asyncio
import contextlib
import socket
import ssl
from email.policy import SMTP

import aiosmtplib

from service.doctor.findings import Finding, fail, ok, warn, within
from service.doctor.machine import is_local
from service.exceptions import StartError
from service.mail.rendering import read_templates
from service.settings import MailServer, Settings

DEADLINE_S = 10
STEP_S = 5


async def check_mail(settings: Settings) -> list[Finding]:
    """Templates, MAIL_FROM and the server of MAIL_URL."""
    findings = []
    try:
        read_templates(settings.mail_templates_dir)
    except StartError as error:
        findings.append(fail("mail", str(error), "Mend the file, or unset MAIL_TEMPLATES_DIR."))
    server = settings.mail_server
    if server is None:
        detail = (
            f"no MAIL_URL: mails are written to {settings.data_dir / 'mail'}, and nobody gets them"
        )
        if settings.database is None:
            findings.append(ok("mail", detail))
        else:
            findings.append(warn("mail", detail, "Set MAIL_URL to your mail server."))
        return findings
    sender = _address(settings.mail_from)
    if sender.rpartition("@")[2] in ("localhost", "localhost.localdomain"):
        detail = f"mails come from {sender}, which other servers refuse"
        findings.append(warn("mail", detail, "Set MAIL_FROM to an address of your domain."))
    if server.user and server.security == "none" and not is_local(server.host):
        detail = "MAIL_URL's password goes over the network in the clear"
        findings.append(warn("mail", detail, "Use smtp+starttls:// or smtps:// in MAIL_URL."))
    where = f"{server.host}:{server.port}"
    try:
        within(STEP_S, socket.getaddrinfo, server.host, server.port)
        async with asyncio.timeout(DEADLINE_S):
            findings.append(await _talk(server, where, sender))
    except (socket.gaierror, TimeoutError, OSError, aiosmtplib.SMTPException) as error:
        findings.append(_explain(error, where))
    return findings


def _address(mail_from: str) -> str:
    header = SMTP.header_factory("From", mail_from)
    return str(header.addresses[0].addr_spec)


async def _talk(server: MailServer, where: str, sender: str) -> Finding:
    """Go as far as the sender's address, in the steps of sending. Raises as the steps do."""
    smtp = aiosmtplib.SMTP(
        hostname=server.host,
        port=server.port,
        use_tls=server.security == "tls",
        start_tls=False,
        local_hostname=socket.gethostname(),
        timeout=STEP_S,
    )
    try:
        await smtp.connect()
        await smtp.ehlo()
        if server.security == "starttls":
            if not smtp.supports_extension("starttls"):
                return fail(
                    "mail",
                    f"the mail server at {where} does not offer STARTTLS, which MAIL_URL asks for",
                    "Turn STARTTLS on there; or use smtps:// (port 465), or, on a network that you"
                    " trust, smtp:// in MAIL_URL.",
                )
            await smtp.starttls()
            await smtp.ehlo()
        if server.user:
            if not smtp.supports_extension("auth"):
                return fail(
                    "mail",
                    f"the mail server at {where} takes no sign-in over this connection",
                    "Use smtp+starttls:// or smtps:// in MAIL_URL, or take user and password out.",
                )
            await smtp.login(server.user, server.password)
        await smtp.mail(sender)
        with contextlib.suppress(OSError, aiosmtplib.SMTPException):
            await smtp.rset()
            await smtp.quit()
    finally:
        smtp.close()
    how = {"none": "without TLS", "starttls": "with STARTTLS", "tls": "with TLS"}[server.security]
    signed_in = f", signed in as {server.user}" if server.user else ""
    return ok("mail", f"the mail server at {where} takes mail from {sender}, {how}{signed_in}")


def _explain(error: Exception, where: str) -> Finding:
    """Why it failed, in our own words: the server's may repeat what it was sent."""
    server = f"the mail server at {where}"
    chain = [error, error.__cause__, error.__context__]
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return fail(
            "mail",
            f"{server} has a certificate that is not trusted",
            "Name the host as its certificate does in MAIL_URL, and its authority's certificate in"
            " SSL_CERT_FILE.",
        )
    if any(isinstance(each, ssl.SSLError) for each in chain):
        return fail(
            "mail",
            f"{server} does not speak TLS from the first byte, or no version that we take",
            "Use smtp+starttls:// (usually port 587) instead of smtps:// in MAIL_URL.",
        )
    match error:
        case socket.gaierror():
            return fail("mail", f"{server}: there is no such host", "Mend the host in MAIL_URL.")
        case aiosmtplib.SMTPAuthenticationError():
            detail = f"{server} refuses user or password ({error.code})"
            return fail("mail", detail, "Mend them in MAIL_URL; escape @ : / in them.")
        case aiosmtplib.SMTPSenderRefused():
            detail = f"{server} refuses MAIL_FROM as the sender ({error.code})"
            return fail("mail", detail, "Set MAIL_FROM to an address that this server sends for.")
        case aiosmtplib.SMTPResponseException():
            detail = f"{server} answers {error.code} and takes no mail from here"
            return fail("mail", detail, "Look into its log: it may not let this machine in.")
        case TimeoutError():
            return fail("mail", f"{server} does not answer", _REACH)
        case aiosmtplib.SMTPServerDisconnected():
            return fail("mail", f"{server} ends the connection", _REACH)
    refused = any(isinstance(each, ConnectionRefusedError) for each in chain)
    reason = "refuses the connection" if refused else "cannot be reached"
    return fail("mail", f"{server} {reason}", _REACH)


_REACH = "Mend host and port in MAIL_URL, start the server, or let the firewall pass this."
