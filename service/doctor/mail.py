"""Checks of the mail server: connection, certificate, sign-in, our sender, and a recipient."""

import asyncio
import contextlib
import socket
import ssl

import aiosmtplib

from service.doctor.findings import Finding, fail, ok, warn, within
from service.exceptions import StartError
from service.mail import smtp
from service.mail.rendering import read_templates
from service.settings import MailServer, Settings, is_local, split_sender

DEADLINE_S = 10
STEP_S = 5


async def check_mail(settings: Settings) -> list[Finding]:
    """Check templates, MAIL_FROM and the server in MAIL_URL."""
    findings = []
    try:
        read_templates(settings.mail_templates_dir)
    except StartError as error:
        findings.append(fail("mail", str(error), "Fix the file, or unset MAIL_TEMPLATES_DIR."))
    server = settings.mail_server
    if server is None:
        detail = f"no MAIL_URL: emails are written to {settings.data_dir / 'mail'} and not sent"
        if settings.database is None:
            findings.append(ok("mail", detail))
        else:
            findings.append(warn("mail", detail, "Set MAIL_URL to your mail server."))
        return findings
    sender = split_sender(settings.mail_from)[1]
    if sender.rpartition("@")[2] in ("localhost", "localhost.localdomain"):
        detail = f"emails are sent from {sender}, which other servers reject"
        findings.append(warn("mail", detail, "Set MAIL_FROM to an email address in your domain."))
    # The settings refuse an access token without TLS.
    if server.user and server.security == "none" and not is_local(server.host):
        detail = "the password in MAIL_URL is sent over the network in the clear"
        findings.append(warn("mail", detail, "Use smtp+starttls:// or smtps:// in MAIL_URL."))
    where = f"{server.host}:{server.port}"
    try:
        within(STEP_S, socket.getaddrinfo, server.host, server.port)
        name = settings.mail_ehlo or _full_name()
        async with asyncio.timeout(DEADLINE_S):
            findings.append(await _talk(server, name, where, sender))
    except (socket.gaierror, TimeoutError, OSError, aiosmtplib.SMTPException) as error:
        findings.append(_explain(error, where))
    return findings


def _full_name() -> str:
    try:
        return within(STEP_S, smtp.full_name, socket.gethostname())
    except TimeoutError:
        return ""


async def _talk(server: MailServer, ehlo: str, where: str, sender: str) -> Finding:
    """Run the steps of sending an email up to its recipient. Raises what aiosmtplib raises.

    The recipient is the postmaster of our own domain, a mailbox that RFC 5321 §4.5.1 requires.
    """
    how = {"none": "without TLS", "starttls": "with STARTTLS", "tls": "with TLS"}[server.security]
    signed_in = f", signed in as {server.user}" if server.user else ""
    postmaster = f"postmaster@{sender.rpartition('@')[2]}"
    async with smtp.session(server, ehlo, STEP_S) as session:
        try:
            await smtp.start_mail(session, sender, postmaster)
        except aiosmtplib.SMTPRecipientRefused as error:
            # Another recipient may well be accepted, and greylisting is common.
            if error.code >= 500 and not smtp.is_about_recipient(error):
                raise
        with contextlib.suppress(OSError, aiosmtplib.SMTPException):
            await session.rset()
    return ok("mail", f"the mail server at {where} accepts mail from {sender}, {how}{signed_in}")


def _explain(error: Exception, where: str) -> Finding:
    """Describe the failure in our own words: the server's text may echo the password."""
    server = f"the mail server at {where}"
    chain = [error, error.__cause__, error.__context__]
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return fail(
            "mail",
            f"{server} has an untrusted certificate",
            "Use the host name from its certificate in MAIL_URL, and set SSL_CERT_FILE to its"
            " authority's certificate.",
        )
    if any(isinstance(each, ssl.SSLError) for each in chain):
        return fail(
            "mail",
            f"{server} does not speak TLS from the first byte, or no supported version",
            "Use smtp+starttls:// (usually port 587) instead of smtps:// in MAIL_URL.",
        )
    match error:
        case smtp.MissingExtensionError(args=("STARTTLS",)):
            return fail(
                "mail",
                f"{server} does not offer STARTTLS, which MAIL_URL requires",
                "Turn STARTTLS on there, or use smtps:// (port 465) in MAIL_URL. On a trusted"
                " network, smtp:// works too.",
            )
        case smtp.MissingExtensionError(args=("XOAUTH2",)):
            return fail(
                "mail",
                f"{server} offers neither XOAUTH2 nor OAUTHBEARER over this connection",
                "Use smtp+starttls:// or smtps:// in MAIL_URL. If it takes no access tokens, unset"
                " MAIL_TOKEN_FILE and add a password to MAIL_URL.",
            )
        case smtp.MissingExtensionError():
            return fail(
                "mail",
                f"{server} does not accept sign-in over this connection",
                "Use smtp+starttls:// or smtps:// in MAIL_URL, or remove user and password.",
            )
        case socket.gaierror():
            return fail("mail", f"{server}: no such host", "Correct the host in MAIL_URL.")
        case smtp.TokenFileError():
            detail = "MAIL_TOKEN_FILE does not hold an access token"
            fix = "Write the token to it, and nothing else, and let the service read it."
            return fail("mail", detail, fix)
        case smtp.TokenRefusedError():
            detail = f"{server} rejects the access token ({_codes(error)})"
            fix = "Renew the token in MAIL_TOKEN_FILE. It must let the user in MAIL_URL send mail."
            return fail("mail", detail, fix)
        case aiosmtplib.SMTPAuthenticationError():
            detail = f"{server} rejects user or password ({_codes(error)})"
            return fail("mail", detail, "Correct them in MAIL_URL, and escape @ : / in them.")
        case aiosmtplib.SMTPSenderRefused():
            detail = f"{server} rejects MAIL_FROM as the sender ({_codes(error)})"
            return fail("mail", detail, "Set MAIL_FROM to a sender that this server accepts.")
        case aiosmtplib.SMTPHeloError():
            detail = f"{server} rejects the name of this machine ({_codes(error)})"
            return fail("mail", detail, "Set MAIL_EHLO to a full name that DNS knows.")
        case aiosmtplib.SMTPRecipientRefused():
            detail = f"{server} rejects recipients from here ({_codes(error)})"
            return fail("mail", detail, _RELAY)
        case aiosmtplib.SMTPResponseException():
            detail = f"{server} responds with {_codes(error)} and accepts no mail from here"
            return fail("mail", detail, "Check its log: it may not allow this machine to send.")
        case TimeoutError():
            return fail("mail", f"{server} does not respond", _REACH)
        case aiosmtplib.SMTPServerDisconnected():
            return fail("mail", f"{server} closes the connection", _REACH)
    refused = any(isinstance(each, ConnectionRefusedError) for each in chain)
    reason = "refuses the connection" if refused else "cannot be reached"
    return fail("mail", f"{server} {reason}", _REACH)


def _codes(error: aiosmtplib.SMTPResponseException) -> str:
    return " ".join(filter(None, [str(error.code), smtp.enhanced_code(error)]))


_RELAY = (
    "Allow this machine, or the user in MAIL_URL, to send through that server. If it expects a full"
    " name in EHLO (504), set MAIL_EHLO."
)
_REACH = "Correct host and port in MAIL_URL, start the server, or allow this in the firewall."
