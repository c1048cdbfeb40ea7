"""Mails built from the pieces of header injections, and a check of their heads.

Imports only the standard library and ``service.mail.message``, so that any Python can run it::

    python3.13 -m tests.support.heads 10000
"""

import random
import re
import sys
from email.header import decode_header, make_header

from service.mail.message import UnsafeEmailError, compose, one_line

SENDER = ("Acme", "no-reply@acme.example")
NAMES = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "MIME-Version",
    "Content-Type",
]
LINE_MAX_BYTES = 998
PIECES = (
    *(
        "\r",
        "\n",
        "\r\n",
        "\r\n ",
        "\r\n\r\n",
        "\n\t",
        "\0",
        "\x0b",
        "\x0c",
        "\x1b",
        "\x7f",
        "\x85",
    ),
    *("\u2028", "\u2029", "\xa0", "\u200b", "\ufeff", "\ud800", "\udc0d", "\udfff", "\u560a"),
    *("Bcc: eve@evil.example", "Subject: x", "Content-Type: text/html", "X:", ":", ";", ","),
    *("=?utf-8?q?a=0d=0aBcc=3a_x=40evil.example?=", "=?utf-8?b?DQpCY2M6IGU=?=", "=?utf-8?q?"),
    *("=?us-ascii?q?=0a?=", "=?utf-7?q?+AA0ACg-?=", "=?", "?=", "=0d=0a", "%0d%0a", "&#13;&#10;"),
    *("(", ")", "<", ">", '"', "\\", "@", ".", "..", " ", "\t", "a", "ada", "example.com"),
    *(
        "é",
        "ß",
        "漢字",
        "😀",
        "نام\u200cخانوادگی",
        "e\u0301" * 40,
        "x" * 100,
        "x " * 600,
        "字" * 500,
    ),
)


def check_head(*, subject: str, name: str, to: str) -> bool:
    """Compose a mail of these values and return True, or False if its email is refused.

    Raises AssertionError if its head is not exactly its headers, one line each. Reads bytes, so
    that no parser can hide what another would see.
    """
    line = one_line(subject)
    try:
        mail = compose(
            sender=(name, SENDER[1]), to=to, subject=subject, text=line, html=line, mail_id="id"
        )
    except UnsafeEmailError:
        return False
    head = mail.split(b"\r\n\r\n")[0]
    lines = head.split(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", mail), mail
    assert not re.search(rb"[^\x20-\x7e\x80-\xff]", b"".join(lines)), mail
    assert to.isascii() <= head.isascii(), mail
    assert all(line.strip() and len(line) <= LINE_MAX_BYTES for line in lines), mail
    unfolded = re.sub(rb"\r\n[ \t]+", b" ", head).split(b"\r\n")
    assert [header.split(b":")[0].decode() for header in unfolded] == NAMES, mail
    shown = unfolded[NAMES.index("Subject")].removeprefix(b"Subject:").strip().decode()
    assert str(make_header(decode_header(shown))) == line, mail
    assert unfolded[NAMES.index("To")] == f"To: {to}".encode(), mail
    return True


def _some(pick: random.Random) -> str:
    return "".join(pick.choices(PIECES, k=pick.randint(0, 8)))


def main(examples: int, seed: int = 1) -> None:
    """Check this many mails, and fail if almost no email of them was accepted."""
    pick = random.Random(seed)
    accepted = 0
    for _ in range(examples):
        to = f"{_some(pick)}@example.com" if pick.random() < 0.5 else "ada@example.com"
        accepted += check_head(subject=_some(pick), name=_some(pick), to=to)
    assert accepted >= examples // 2, accepted
    print(f"Python {sys.version.split()[0]}: {examples} mails, {accepted} accepted")


if __name__ == "__main__":
    main(int(sys.argv[1]))
