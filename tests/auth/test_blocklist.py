"""The blocklist: passwords it blocks, and passwords it must allow."""

import random
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.auth import blocklist
from service.auth.blocklist import is_blocked

# As documented by blocklist.is_blocked.
FALSE_POSITIVE_RATE = 1e-6


@pytest.fixture
def data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy of the data file, which the module loads instead of its own."""
    path = tmp_path / "blocklist.bin"
    path.write_bytes(blocklist._PATH.read_bytes())
    monkeypatch.setattr(blocklist, "_PATH", path)
    blocklist._load.cache_clear()
    yield path
    blocklist._load.cache_clear()


@pytest.mark.asvs("6.2.4")
@pytest.mark.parametrize(
    "password",
    [
        "password",
        "trustno1",
        "iloveyou",
        "elephant",  # a word
        "christopher",  # a name
        "shinkei",  # the service
        "1q2w3e4r5t6y7u8i9o0p",
        "polniypizdec0211",  # breached, though no rule would suspect it
        "internationally",
        "correct horse battery staple",  # too famous
        "correct-horse-battery-staple",
        "CorrectHorseBatteryStaple!",
        "supercalifragilisticexpialidocious",
    ],
)
def test_listed_passwords_are_blocked_in_any_case(password: str) -> None:
    assert is_blocked(password)
    assert is_blocked(password.upper())
    assert is_blocked(password.title())


def test_compatibility_characters_do_not_hide_a_listed_password() -> None:
    assert is_blocked("password".replace("o", "º").replace("ss", "ˢˢ") * 2)


@pytest.mark.asvs("6.2.12")
@pytest.mark.parametrize(
    "password",
    [
        "passwordpassword",
        "letmeinletmeinletmein",
        "PasswordPasswordPass",  # the last repetition is cut short
        "xk7qxk7qxk7qxk7q",  # four unlisted characters are too few, however often repeated
        "aaaaaaaaaaaaaaa",
        "password1234567",
        "Password!!!!!!!",
        "1234567password",
        "Robert123456789",
        "password123password123",
        "Password-Password-1",
        "passwordpassword1!",
        "christopher1992",
        "p a s s w o r d 1 2 3 4",
        "11111111jake123",  # jake alone is too short to be listed, but jake123 is
    ],
)
def test_listed_passwords_stay_blocked_when_repeated_or_padded(password: str) -> None:
    assert is_blocked(password)


@pytest.mark.parametrize(
    "password",
    [
        "123456789012345",
        "12345678901234567890123456789012345678901234567890",
        "987654321098765",
        "abcdefghijklmnop",
        "zyxwvutsrqponmlk",
        "qwertyuiopasdfgh",
        "QwertyuiopAsdfghjklZxcvbnm",
        "poiuytrewqlkjhgfdsa",
        "1qaz2wsx3edc4rfv",
        "zaq12wsxcde34rfv",
        "112233445566778",
        "111222333444555",
        "aaaaabbbbbccccc",
        "йцукенгшщзфывапролд",
    ],
)
def test_sequences_and_keyboard_walks_are_blocked(password: str) -> None:
    assert is_blocked(password)


@pytest.mark.parametrize(
    "password",
    [
        "granite lantern eats nine pickles",
        "my password was eaten by an otter",  # a listed word among others
        "Zug fährt ab, Kaffee bleibt da",
        "snow melts twice on Tuesdays 123",
        "tr4ctor-Velvet-ominous",
        "vX9!mQ2#pL7$wR4",
        "gq8zt5wm1xk7bd3n",
        "QOq,W-3E",  # as short as a deployment may allow
        "_!?.-!_ ?-._!?-.",  # separators only, in random order
        "パスワードではない長い文章です",
    ],
)
def test_good_passphrases_are_not_blocked(password: str) -> None:
    assert not is_blocked(password)


@pytest.mark.parametrize("count", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_random_passwords_are_rarely_blocked(count: int) -> None:
    chance = random.Random(20240817)
    alphabet = string.ascii_letters + string.digits
    blocked = sum(
        is_blocked("".join(chance.choices(alphabet, k=chance.randint(15, 24))))
        for _ in range(count)
    )
    assert blocked / count <= FALSE_POSITIVE_RATE


@pytest.mark.parametrize(
    ("password", "blocked"),
    [
        ("", True),
        ("love", True),
        ("a" * 256, True),
        ("\ud800" * 20, True),  # not encodable as UTF-8
        ("ﷺ" * 256, False),  # normalizes to a phrase of 18 characters
        ("qwertyuiop" * 25 + "&x?Z", True),
        ("&x?Zk" + "123zyx" * 40, True),
    ],
)
def test_lookup_accepts_any_text(password: str, blocked: bool) -> None:
    assert is_blocked(password) == blocked


@pytest.mark.parametrize("kept", [0, 7, 20])
def test_file_without_a_header_is_rejected(data_file: Path, kept: int) -> None:
    data_file.write_bytes(data_file.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is not a blocklist"):
        is_blocked("password")


def test_file_of_another_kind_is_rejected(data_file: Path) -> None:
    data_file.write_bytes(b"\x89PNG\r\n\x1a\n" + data_file.read_bytes()[8:])
    with pytest.raises(ValueError, match="is not a blocklist"):
        is_blocked("password")


@pytest.mark.parametrize("place", [8, 12, 21, blocklist.HEADER.size, -1])
def test_file_with_a_changed_byte_is_rejected(data_file: Path, place: int) -> None:
    data = bytearray(data_file.read_bytes())
    data[place] ^= 1
    data_file.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        is_blocked("password")


def test_truncated_file_is_rejected(data_file: Path) -> None:
    data_file.write_bytes(data_file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is damaged"):
        is_blocked("password")


def test_file_built_by_other_rules_is_rejected(
    data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocklist, "_fold", str.lower)
    with pytest.raises(ValueError, match="was built with different rules"):
        is_blocked("password")


def test_error_names_a_missing_file(data_file: Path) -> None:
    data_file.unlink()
    with pytest.raises(FileNotFoundError, match=r"blocklist\.bin"):
        is_blocked("password")


def test_entries_are_sorted_and_distinct() -> None:
    entries, width = blocklist._load()
    digests = [entries[at : at + width] for at in range(0, len(entries), width)]
    assert digests == sorted(set(digests))
    assert len(digests) / 256**width < FALSE_POSITIVE_RATE / 10
