"""One-time codes by the vectors of their standards, through the functions that signing in calls."""

import base64
import string
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.factors import recovery_codes, totp
from service.factors.totp import Algorithm

# RFC 4226 appendix D: the codes of counters 0 to 9.
HOTP_SECRET = b"12345678901234567890"
HOTP_CODES = [
    "755224",
    "287082",
    "359152",
    "969429",
    "338314",
    "254676",
    "287922",
    "162583",
    "399871",
    "520489",
]
# RFC 6238 appendix B, whose secrets repeat these digits to the length of the hash.
TOTP_SECRETS: dict[Algorithm, bytes] = {
    "SHA1": (b"1234567890" * 7)[:20],
    "SHA256": (b"1234567890" * 7)[:32],
    "SHA512": (b"1234567890" * 7)[:64],
}
TOTP_CODES = {
    59: ("94287082", "46119246", "90693936"),
    1111111109: ("07081804", "68084774", "25091201"),
    1111111111: ("14050471", "67062674", "99943326"),
    1234567890: ("89005924", "91819424", "93441116"),
    2000000000: ("69279037", "90698825", "38618901"),
    20000000000: ("65353130", "77737706", "47863826"),
}
TOTP_VECTORS = [
    (unix_time_s, algorithm, code)
    for unix_time_s, codes in TOTP_CODES.items()
    for algorithm, code in zip(TOTP_SECRETS, codes, strict=True)
]


def test_all_vectors_are_here() -> None:
    assert (len(HOTP_CODES), len(TOTP_VECTORS)) == (10, 18)


@pytest.mark.asvs("6.5.5")
@pytest.mark.parametrize(("counter", "code"), [*enumerate(HOTP_CODES)])
def test_vector_of_rfc_4226(counter: int, code: str) -> None:
    assert totp.code_at(HOTP_SECRET, counter) == code


@pytest.mark.asvs("6.5.5")
@pytest.mark.parametrize(("unix_time_s", "algorithm", "code"), TOTP_VECTORS)
def test_vector_of_rfc_6238(unix_time_s: int, algorithm: Algorithm, code: str) -> None:
    step = totp.step_at(unix_time_s)
    secret = TOTP_SECRETS[algorithm]
    assert totp.code_at(secret, step, digits=8, algorithm=algorithm) == code
    if algorithm == "SHA1":
        # Apps show the last six digits.
        assert totp.find_step(secret, code[2:], unix_time_s, None) == step


@pytest.mark.parametrize(("steps", "accepted"), [(-2, False), (-1, True), (0, True), (1, True)])
def test_clocks_may_differ_by_one_step(steps: int, accepted: bool) -> None:
    secret, now_s = bytes(range(20)), 1_800_000_010
    step = totp.step_at(now_s) + steps
    found = totp.find_step(secret, totp.code_at(secret, step), now_s, None)
    assert found == (step if accepted else None)


@pytest.mark.asvs("6.5.1")
@given(st.binary(min_size=20, max_size=20), st.integers(-1, 1), st.integers(-1, 1))
def test_only_codes_of_later_steps_are_accepted(secret: bytes, used: int, sent: int) -> None:
    now_s = 1_800_000_000
    now = totp.step_at(now_s)
    code = totp.code_at(secret, now + sent)
    found = totp.find_step(secret, code, now_s, now + used)
    assert found is None or found > now + used
    assert (found is not None) or sent <= used


@given(st.text(max_size=40), st.emails())
def test_uri_names_issuer_and_account(issuer: str, email: str) -> None:
    secret = totp.new_secret()
    url = urlsplit(totp.otpauth_uri(secret, issuer, email))
    assert (url.scheme, url.netloc) == ("otpauth", "totp")
    assert unquote(url.path) == f"/{issuer}:{email}"
    given_secret = parse_qs(url.query)["secret"][0]
    assert base64.b32decode(given_secret + "=" * (-len(given_secret) % 8)) == secret


def test_qr_code_is_one_element_without_script() -> None:
    svg = totp.qr_svg(totp.otpauth_uri(totp.new_secret(), "Shinkei", "ada@example.com"))
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>")
    assert "script" not in svg


@pytest.mark.asvs("6.5.3", "6.5.4")
def test_recovery_codes_differ_and_are_long_enough() -> None:
    codes = recovery_codes.new_codes()
    assert len(set(codes)) == recovery_codes.COUNT
    assert len(set(recovery_codes.ALPHABET)) == 32
    for code in codes:
        # Five bits a character.
        assert len(code.replace("-", "")) * 5 >= 50


@given(st.text(string.ascii_letters + string.digits + "- ", max_size=20))
def test_recovery_codes_ignore_case_separators_and_look_alikes(code: str) -> None:
    typed = code.upper().replace("-", " ").replace("0", "O").replace("1", "I")
    assert recovery_codes.hash_code(b"key", typed) == recovery_codes.hash_code(b"key", code)
