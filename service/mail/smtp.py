"""A session with the mail server, step by step, for the sender and for ``shinkei doctor``.

Imported late, because aiosmtplib is slow to import. Emails go into commands as they are: aiosmtplib
would parse them first.
"""

import asyncio
import base64
import contextlib
import functools
import re
import socket
import time
from collections.abc import AsyncIterator, Callable

import aiosmtplib
from aiosmtplib import SMTPDataError, SMTPRecipientRefused, SMTPResponse, SMTPSenderRefused

from service.settings import MailServer, is_full_name

# Deadline of each step before the content is sent. RFC 5321 §4.5.3.2 allows minutes, but giving up
# earlier does no harm there.
STEP_TIMEOUT_S = 30
# Deadline after the final dot (RFC 5321 §4.5.3.2.6). Giving up earlier would send mails twice.
ANSWER_TIMEOUT_S = 600
QUIT_TIMEOUT_S = 1
NAME_KEPT_S = 600

_ENHANCED_CODE = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?![0-9.])")
# RFC 3463 §3.2, §3.3: all X.1 codes but the two about the sender, and a disabled mailbox.
_ABOUT_RECIPIENT = re.compile(r"[245]\.1\.(?!(7|8)$)[0-9]+|5\.2\.1")


class MissingExtensionError(aiosmtplib.SMTPNotSupported):
    """The server does not offer a needed extension: its keyword is the message."""


class TokenFileError(OSError):
    """The access token's file cannot be read, or does not hold a token."""


class TokenRefusedError(aiosmtplib.SMTPAuthenticationError):
    """The server refused the access token."""


class ContentRefusedError(SMTPDataError):
    """The server refused the mail after it had the whole content."""


class NoAnswerError(Exception):
    """The server got the whole mail but did not say whether it accepts it.

    ``__cause__`` says why.
    """


def enhanced_code(error: BaseException) -> str | None:
    """Return the enhanced status code (RFC 3463) of the server's response, or None."""
    if not isinstance(error, aiosmtplib.SMTPResponseException):
        return None
    match = _ENHANCED_CODE.match(str(error.message))
    return match[0] if match and match[1] == str(error.code)[0] else None


def is_about_recipient(error: aiosmtplib.SMTPResponseException) -> bool:
    """Whether the response to RCPT or a later command says that the recipient does not exist.

    Only the enhanced code can tell. Servers also send 550, 553 and 554 because of the client, its
    name or its rate, or because they do not relay.
    """
    if isinstance(error, SMTPRecipientRefused | SMTPDataError):
        return _ABOUT_RECIPIENT.fullmatch(enhanced_code(error) or "") is not None
    return False


@contextlib.asynccontextmanager
async def session(
    server: MailServer, ehlo: str, timeout_s: float | None = None
) -> AsyncIterator[aiosmtplib.SMTP]:
    """Connect, greet and sign in. Raises OSError, such as TokenFileError, or SMTPException.

    ``ehlo`` is this machine's full name; if empty, its IP is used (RFC 5321 §4.1.4). The session
    ends with QUIT, unless the connection fails or the task is cancelled.
    """
    try:
        token = await asyncio.to_thread(server.read_token)
    except (OSError, ValueError):
        # Without its cause, which may quote the file.
        raise TokenFileError from None
    smtp = aiosmtplib.SMTP(
        hostname=server.host,
        port=server.port,
        use_tls=server.security == "tls",
        start_tls=False,
        # Replaced below. None would look up a name.
        local_hostname="localhost",
        timeout=STEP_TIMEOUT_S if timeout_s is None else timeout_s,
    )
    try:
        await smtp.connect()
        smtp.local_hostname = ehlo or _literal(smtp)
        await _greet(smtp)
        if server.security == "starttls":
            _require(smtp, "STARTTLS")
            await smtp.starttls()
            await _greet(smtp)
        if token is not None:
            await _sign_in_with_token(smtp, server, token)
        elif server.user:
            _require(smtp, "AUTH")
            await smtp.login(server.user, server.password)
        yield smtp
        await _quit(smtp)
    except aiosmtplib.SMTPResponseException:
        await _quit(smtp)
        raise
    finally:
        smtp.close()


async def _sign_in_with_token(smtp: aiosmtplib.SMTP, server: MailServer, token: str) -> None:
    """Sign in by XOAUTH2, or else by OAUTHBEARER (RFC 7628). Raises TokenRefusedError."""
    try:
        if "xoauth2" in smtp.server_auth_methods:
            await smtp.auth_xoauth2(server.user, token)
        elif "oauthbearer" in smtp.server_auth_methods:
            await _auth_oauthbearer(smtp, server, token)
        else:
            raise MissingExtensionError("XOAUTH2")
    except aiosmtplib.SMTPAuthenticationError as error:
        raise TokenRefusedError(error.code, error.message) from None


async def _auth_oauthbearer(smtp: aiosmtplib.SMTP, server: MailServer, token: str) -> None:
    # RFC 5801 §4: "=" and "," are escaped in the user's name.
    user = server.user.replace("=", "=3D").replace(",", "=2C")
    where = f"host={server.host}\1port={server.port}"
    message = f"n,a={user},\1{where}\1auth=Bearer {token}\1\1"
    encoded = base64.b64encode(message.encode())
    response = await smtp.execute_command(b"AUTH", b"OAUTHBEARER", encoded)
    if response.code == aiosmtplib.SMTPStatus.auth_continue:
        # The challenge says why. The response to it ends the exchange (RFC 7628 §3.2.3).
        response = await smtp.execute_command(base64.b64encode(b"\1"))
    if response.code != aiosmtplib.SMTPStatus.auth_successful:
        raise aiosmtplib.SMTPAuthenticationError(response.code, response.message)


def _literal(smtp: aiosmtplib.SMTP) -> str:
    ip = str(smtp.get_transport_info("sockname")[0]).partition("%")[0]
    return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"


def full_name(hostname: str) -> str:
    """Look up the full name, which may take seconds. Returns an empty string if there is none.

    The result is kept for ``NAME_KEPT_S``: the name may become known after the machine has started.
    """
    return _full_name(hostname, time.monotonic() // NAME_KEPT_S)


@functools.lru_cache(maxsize=2)
def _full_name(hostname: str, period: float) -> str:
    name = socket.getfqdn(hostname)
    usable = is_full_name(name) and not name.endswith((".localdomain", ".arpa"))
    return name if usable else ""


async def _greet(smtp: aiosmtplib.SMTP) -> None:
    try:
        await smtp.ehlo()
    except aiosmtplib.SMTPHeloError:
        if not smtp.is_connected:
            raise
        await smtp.helo()


def _require(smtp: aiosmtplib.SMTP, extension: str) -> None:
    if not smtp.supports_extension(extension):
        raise MissingExtensionError(extension)


async def _quit(smtp: aiosmtplib.SMTP) -> None:
    with contextlib.suppress(OSError, aiosmtplib.SMTPException):
        async with asyncio.timeout(QUIT_TIMEOUT_S):
            await smtp.quit()


async def start_mail(
    smtp: aiosmtplib.SMTP, sender: str, recipient: str, *, size_bytes: int | None = None
) -> None:
    """Name sender and recipient. Raises SMTPSenderRefused or SMTPRecipientRefused."""
    options = []
    if size_bytes is not None and smtp.supports_extension("SIZE"):
        options.append(f"SIZE={size_bytes}")
    if not recipient.isascii():
        _require(smtp, "SMTPUTF8")
        options += ["SMTPUTF8", "BODY=8BITMIME"]
    await _command(smtp, "MAIL", f"FROM:<{sender}>", *options, refused=SMTPSenderRefused)
    await _command(smtp, "RCPT", f"TO:<{recipient}>", refused=SMTPRecipientRefused)


async def _command(
    smtp: aiosmtplib.SMTP, *words: str, refused: Callable[[int, str, str], Exception]
) -> None:
    response = await smtp.execute_command(*(word.encode() for word in words))
    if not _is_accepted(response):
        raise refused(response.code, response.message, words[1])


def _is_accepted(response: SMTPResponse) -> bool:
    return 200 <= response.code < 300


async def start_data(smtp: aiosmtplib.SMTP) -> None:
    """Announce the content. Raises SMTPDataError."""
    response = await smtp.execute_command(b"DATA")
    if response.code != aiosmtplib.SMTPStatus.start_input:
        raise SMTPDataError(response.code, response.message)


async def send_data(smtp: aiosmtplib.SMTP, message: bytes) -> None:
    """Send the content and wait for the response. Raises ContentRefusedError or NoAnswerError."""
    lines = message.splitlines()
    # RFC 5321 §4.5.2: a line that begins with a dot gets another.
    content = b"".join(b"." * line.startswith(b".") + line + b"\r\n" for line in lines) + b".\r\n"
    protocol = smtp.protocol
    if protocol is None:
        raise aiosmtplib.SMTPServerDisconnected("Connection lost")
    protocol.write(content)
    try:
        response = await protocol.read_response(timeout=ANSWER_TIMEOUT_S)
    except (OSError, aiosmtplib.SMTPException) as error:
        raise NoAnswerError from error
    if 400 <= response.code < 600:
        raise ContentRefusedError(response.code, response.message)
    if not _is_accepted(response):
        raise NoAnswerError
