"""Passkeys: the standard's vectors, what must be refused, and that nothing else can happen."""

import itertools
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from fido2 import cbor
from hypothesis import given
from hypothesis import strategies as st

from service.factors import webauthn
from service.factors.aaguids import name_of
from service.factors.webauthn import (
    REFUSALS,
    Assertion,
    Credential,
    NewPasskey,
    Passkey,
    PasskeyRefused,
    RelyingParty,
    creation_options,
    credential_id_of,
    relying_party,
    request_options,
    verify_assertion,
    verify_registration,
)
from service.settings import load_settings
from tests.support.authenticator import (
    AAGUID,
    EDDSA,
    ES256,
    ORIGIN,
    RP_ID,
    RS256,
    Authenticator,
    Change,
    decoded,
    encoded,
)
from tests.support.passkey_faults import FAULTS, OTHER_ORIGIN, Fault

RP = RelyingParty(RP_ID, frozenset({ORIGIN, OTHER_ORIGIN}))
CHALLENGE = os.urandom(32)
CREATION = creation_options(
    RP,
    user_handle=b"the handle",
    email="ada@app.example",
    display_name="Ada",
    challenge=CHALLENGE,
    exclude=[b"another"],
)
REQUEST = request_options(RP, CHALLENGE, [])

VECTORS = json.loads(Path(__file__).with_name("webauthn_vectors.json").read_text())["vectors"]
OF_VECTORS = RelyingParty("example.org", frozenset({"https://example.org"}))
# Vectors that this service's policy refuses: in the registration, and in the authentication. All
# that the standard requires is checked before, the signature included.
POLICY = {
    "none-es256": ("not_verified", "not_verified"),
    "packed-self-es256": ("", "not_verified"),
    "none-es256-crossOrigin": ("cross_origin", "cross_origin"),
    "none-es256-topOrigin": ("wrong_top_origin", "wrong_top_origin"),
    "none-es256-long-credential-id": ("not_verified", ""),
    "packed-es256": ("", ""),
    "packed-es384": ("algorithm_not_offered", "algorithm_not_offered"),
    "packed-es512": ("algorithm_not_offered", "algorithm_not_offered"),
    "packed-rs256": ("", "not_verified"),
    "packed-eddsa": ("not_verified", "not_verified"),
    "packed-ed448": ("algorithm_not_offered", "algorithm_not_offered"),
    "tpm-es256": ("", ""),
    "android-key-es256": ("", "not_verified"),
    "apple-es256": ("not_verified", "not_verified"),
    "fido-u2f-es256": ("not_verified", "not_verified"),
}


def code_of(function: Any, *arguments: Any) -> str:
    """Return the code of the refusal, or nothing if the call succeeds."""
    try:
        function(*arguments)
    except PasskeyRefused as refused:
        return refused.code
    return ""


def with_members(credential_id: str, response: dict[str, str], *names: str) -> dict[str, Any]:
    members = {name: encoded(bytes.fromhex(response[name])) for name in names}
    id_ = encoded(bytes.fromhex(credential_id))
    return {"id": id_, "rawId": id_, "type": "public-key", "response": members}


def key_of(attestation_object: str) -> tuple[bytes, int]:
    """Return the key and the flags, read without the code that is tested."""
    attestation: Any = cbor.decode(bytes.fromhex(attestation_object))
    data: bytes = attestation["authData"]
    return data[55 + int.from_bytes(data[53:55], "big") :], data[32]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vector_of_the_standard_is_verified_as_policy_says(vector: dict[str, Any]) -> None:
    registration, authentication = vector["registration"], vector["authentication"]
    credential_id = registration["credential_id"]
    created = with_members(credential_id, registration, "clientDataJSON", "attestationObject")
    challenge = bytes.fromhex(registration["challenge"])
    at_registration, at_authentication = POLICY[vector["name"]]
    assert code_of(verify_registration, OF_VECTORS, challenge, created) == at_registration
    names = ("clientDataJSON", "authenticatorData", "signature")
    used = with_members(credential_id, authentication, *names)
    key, flags = key_of(registration["attestationObject"])
    stored = Passkey(bytes.fromhex(credential_id), key, 0, bool(flags & 8))
    challenge = bytes.fromhex(authentication["challenge"])
    assert code_of(verify_assertion, OF_VECTORS, challenge, used, stored) == at_authentication


def test_all_vectors_of_the_standard_are_tried() -> None:
    assert [vector["name"] for vector in VECTORS] == list(POLICY)
    assert len(VECTORS) == 15


@pytest.mark.parametrize(
    "vector",
    [one for one in VECTORS if POLICY[one["name"]][1] in ("", "not_verified")],
    ids=lambda vector: vector["name"],
)
def test_vector_with_another_signature_is_refused_for_that(vector: dict[str, Any]) -> None:
    """Those without user verification reach the signature, too."""
    registration, authentication = vector["registration"], vector["authentication"]
    credential_id = registration["credential_id"]
    names = ("clientDataJSON", "authenticatorData", "signature")
    used = with_members(credential_id, authentication, *names)
    other = bytearray.fromhex(authentication["signature"])
    other[-1] ^= 1
    used["response"]["signature"] = encoded(bytes(other))
    key, flags = key_of(registration["attestationObject"])
    stored = Passkey(bytes.fromhex(credential_id), key, 0, bool(flags & 8))
    challenge = bytes.fromhex(authentication["challenge"])
    assert code_of(verify_assertion, OF_VECTORS, challenge, used, stored) == "bad_signature"


def stored(new: NewPasskey) -> Passkey:
    return Passkey(new.credential_id, new.public_key, new.sign_count, new.backup_eligible)


def enrolled(authenticator: Authenticator) -> Passkey:
    return stored(verify_registration(RP, CHALLENGE, authenticator.create(CREATION)))


@pytest.mark.parametrize("algorithm", [ES256, EDDSA, RS256])
def test_passkey_of_each_algorithm_that_is_offered_works(algorithm: int) -> None:
    authenticator = Authenticator(algorithm)
    new = verify_registration(RP, CHALLENGE, authenticator.create(CREATION))
    assert new == NewPasskey(
        authenticator.credential_id,
        new.public_key,
        5,
        backup_eligible=True,
        backed_up=True,
        transports=["hybrid", "internal"],
        aaguid=uuid.UUID(bytes=AAGUID),
    )
    key: Any = cbor.decode(new.public_key)
    assert key[3] == algorithm
    assertion = verify_assertion(RP, CHALLENGE, authenticator.get(REQUEST), stored(new))
    assert assertion == Assertion(6, backed_up=True, user_handle=b"the handle")


def test_synced_passkey_never_counts() -> None:
    authenticator = Authenticator(count=0)
    passkey = enrolled(authenticator)
    for _ in range(3):
        used = authenticator.get(REQUEST)
        assert verify_assertion(RP, CHALLENGE, used, passkey).sign_count == 0


def test_passkey_that_begins_to_count_is_accepted_and_never_back() -> None:
    authenticator = Authenticator(count=0)
    passkey = enrolled(authenticator)
    first = authenticator.get(REQUEST, count=lambda _: 1)
    count = verify_assertion(RP, CHALLENGE, first, passkey).sign_count
    then = passkey._replace(sign_count=count)
    assert code_of(verify_assertion, RP, CHALLENGE, first, then) == "counter_fell"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.step}: {fault.name}")
def test_one_wrong_thing_is_refused_and_its_twin_accepted(fault: Fault) -> None:
    authenticator = Authenticator()
    if fault.step == "create":
        wrong = fault.wrong(authenticator, CREATION)
        assert code_of(verify_registration, RP, CHALLENGE, wrong) == fault.code
        verify_registration(RP, CHALLENGE, fault.right(authenticator, CREATION))
    else:
        passkey = enrolled(authenticator)
        wrong = fault.wrong(authenticator, REQUEST)
        assert code_of(verify_assertion, RP, CHALLENGE, wrong, passkey) == fault.code
        verify_assertion(RP, CHALLENGE, fault.right(authenticator, REQUEST), passkey)


def test_every_refusal_has_a_fault_that_leads_to_it() -> None:
    assert {fault.code for fault in FAULTS} == set(REFUSALS)
    assert len(FAULTS) >= 100
    assert len({(fault.step, fault.name) for fault in FAULTS}) == len(FAULTS)


def test_assertion_of_another_passkey_is_refused() -> None:
    passkey, other = enrolled(Authenticator()), Authenticator()
    used = other.get(REQUEST)
    assert code_of(verify_assertion, RP, CHALLENGE, used, passkey) == "credential_id_mismatch"
    same_id = passkey._replace(credential_id=other.credential_id)
    assert code_of(verify_assertion, RP, CHALLENGE, used, same_id) == "bad_signature"
    assert credential_id_of(used) == other.credential_id


def test_backup_eligibility_that_appears_is_refused() -> None:
    authenticator = Authenticator()
    passkey = enrolled(authenticator)._replace(backup_eligible=False)
    code = code_of(verify_assertion, RP, CHALLENGE, authenticator.get(REQUEST), passkey)
    assert code == "backup_eligibility_changed"


@pytest.mark.parametrize("bits", [1024, 8192])
def test_rsa_key_of_unusual_size_is_refused(bits: int) -> None:
    def resized(cose: dict[int, Any]) -> dict[int, Any]:
        return {**cose, -1: b"\xff" * (bits // 8)}

    created = Authenticator(RS256).create(CREATION, cose=resized)
    assert code_of(verify_registration, RP, CHALLENGE, created) == "malformed_credential"


def test_no_prefix_of_a_member_is_accepted() -> None:
    authenticator = Authenticator()
    created = authenticator.create(CREATION)
    passkey = stored(verify_registration(RP, CHALLENGE, created))
    used = authenticator.get(REQUEST)
    members = ("clientDataJSON", "attestationObject", "authenticatorData", "signature")
    for name in members:
        for credential in (created, used):
            whole = decoded(credential["response"].get(name, ""))
            # Registrations have authenticator data for scripts, which the service does not read.
            if credential is created and name == "authenticatorData":
                continue
            for length in range(len(whole)):
                response = {**credential["response"], name: encoded(whole[:length])}
                cut = {**credential, "response": response}
                if credential is created:
                    assert code_of(verify_registration, RP, CHALLENGE, cut)
                else:
                    assert code_of(verify_assertion, RP, CHALLENGE, cut, passkey)


# Whatever is sent


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
ANY_CBOR = st.recursive(
    st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=300)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(-5, 5) | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=10,
)
ANY_BYTES = st.binary(max_size=600) | ANY_CBOR.map(cbor.encode)


@st.composite
def spoilers(draw: st.DrawFn) -> Change:
    """Return a change to bytes that are close to the right ones, or far from them."""
    at, length = draw(st.integers(0, 700)), draw(st.integers(0, 40))
    by = draw(ANY_BYTES | st.binary(max_size=4))
    changes: list[Change] = [
        lambda right: right[: at % len(right)] + by + right[at % len(right) + length :],
        lambda right: right + by,
        lambda _: by,
    ]
    return draw(st.sampled_from(changes))


def verify(step: str, credential: Any, passkey: Passkey) -> None:
    """Call what signing in calls. Anything but a refusal or a result is an error."""
    code_of(credential_id_of, credential)
    if step == "create":
        code_of(verify_registration, RP, CHALLENGE, credential)
    else:
        code_of(verify_assertion, RP, CHALLENGE, credential, passkey)


@pytest.mark.property
@given(data=st.data(), step=st.sampled_from(["create", "get"]))
def test_any_json_is_refused_or_verified(data: st.DataObject, step: str) -> None:
    authenticator = Authenticator()
    passkey = enrolled(authenticator)
    right = authenticator.create(CREATION) if step == "create" else authenticator.get(REQUEST)
    inner = right["response"]
    name = data.draw(st.sampled_from(sorted(inner)))
    value = data.draw(ANY_JSON | ANY_BYTES.map(encoded))
    verify(step, {**right, "response": {**inner, name: value}}, passkey)
    name = data.draw(st.sampled_from(sorted(right)))
    verify(step, {**right, name: value}, passkey)
    whole = data.draw(st.dictionaries(st.sampled_from(sorted(right)) | st.text(), ANY_JSON))
    verify(step, whole, passkey)


@pytest.mark.property
@given(
    step_and_place=st.sampled_from(
        [
            *itertools.product(["create", "get"], ["client_data_bytes", "data"]),
            *itertools.product(["create"], ["public_key", "attestation_bytes"]),
            *itertools.product(["get"], ["signature", "sent_data", "sent_client_data"]),
        ]
    ),
    spoil=spoilers(),
)
def test_any_bytes_are_refused_or_verified(step_and_place: tuple[str, str], spoil: Change) -> None:
    step, place = step_and_place
    authenticator = Authenticator()
    passkey = enrolled(authenticator)
    act, options = (
        (authenticator.create, CREATION) if step == "create" else (authenticator.get, REQUEST)
    )
    verify(step, act(options, **{place: spoil}), passkey)


@pytest.mark.property
@given(cose=st.dictionaries(st.sampled_from([1, 3, -1, -2, -3, True]), ANY_CBOR), more=ANY_CBOR)
def test_any_key_is_refused_or_verified(cose: dict[int, Any], more: Any) -> None:
    """A key that is accepted also checks signatures without an error."""
    authenticator = Authenticator()
    created = authenticator.create(CREATION, cose=lambda right: {**right, **cose})
    try:
        passkey = stored(verify_registration(RP, CHALLENGE, created))
    except PasskeyRefused:
        passkey = enrolled(authenticator)._replace(public_key=cbor.encode(more))
    verify("get", authenticator.get(REQUEST), passkey)


def test_work_for_the_largest_credential_is_bounded() -> None:
    """CBOR of the largest size, of as many and of as deeply nested values as fit."""
    for filler in (b"\x00", b"\x80", b"\x81", b"\xa1\x00", b"\x9b" + b"\xff" * 8):
        size = webauthn.ATTESTATION_MAX_BYTES
        head = b"\x99" + size.to_bytes(2, "big")
        whole = (head + filler * size)[:size]
        created = Authenticator().create(CREATION, attestation_bytes=lambda _, whole=whole: whole)
        assert code_of(verify_registration, RP, CHALLENGE, created) == "malformed_credential"


# What browsers are asked


def test_creation_options_ask_for_a_passkey_that_needs_no_name() -> None:
    assert {
        "rp": {"id": RP_ID, "name": RP_ID},
        "user": {"id": encoded(b"the handle"), "name": "ada@app.example", "displayName": "Ada"},
        "challenge": encoded(CHALLENGE),
        "pubKeyCredParams": [{"type": "public-key", "alg": each} for each in (-7, -8, -257)],
        "timeout": 300_000,
        "excludeCredentials": [{"type": "public-key", "id": encoded(b"another")}],
        "authenticatorSelection": {
            "residentKey": "required",
            "requireResidentKey": True,
            "userVerification": "required",
        },
        "attestation": "none",
    } == CREATION
    json.dumps(CREATION)


def test_request_options_name_the_passkeys_or_none() -> None:
    assert {
        "challenge": encoded(CHALLENGE),
        "timeout": 300_000,
        "rpId": RP_ID,
        "allowCredentials": [],
        "userVerification": "required",
    } == REQUEST
    allowed = request_options(RP, CHALLENGE, [Credential(b"a", ["usb"]), Credential(b"b")])
    assert allowed["allowCredentials"] == [
        {"type": "public-key", "id": encoded(b"a"), "transports": ["usb"]},
        {"type": "public-key", "id": encoded(b"b")},
    ]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, RelyingParty("localhost", frozenset({"http://localhost:8080"}))),
        ({"PUBLIC_ORIGIN": "https://A.example:443"}, RelyingParty("a.example", frozenset({"https://a.example"}))),
        ({"PUBLIC_ORIGIN": "https://a.example:8443"}, RelyingParty("a.example", frozenset({"https://a.example:8443"}))),
        ({"PUBLIC_ORIGIN": "https://a.b.example", "RP_ID": "b.example"}, RelyingParty("b.example", frozenset({"https://a.b.example"}))),
        (
            {"PUBLIC_ORIGIN": "https://a.example", "RP_ORIGINS": "https://a.example, https://b.example"},
            RelyingParty("a.example", frozenset({"https://a.example", "https://b.example"})),
        ),
        (
            {"PUBLIC_ORIGIN": "http://192.0.2.1", "RP_ID": "b.example", "RP_ORIGINS": "https://b.example"},
            RelyingParty("b.example", frozenset({"https://b.example"})),
        ),
        ({"PUBLIC_ORIGIN": "https://192.0.2.1"}, None),
        ({"PUBLIC_ORIGIN": "https://127.1"}, None),
        ({"PUBLIC_ORIGIN": "https://[2001:db8::1]"}, None),
        ({"PUBLIC_ORIGIN": "http://a.example"}, None),
        ({"HOST": "::1"}, None),
    ],
)  # fmt: skip
def test_relying_party_follows_the_settings(
    environ: dict[str, str], expected: RelyingParty | None
) -> None:
    assert relying_party(load_settings(environ)) == expected


def test_names_are_known_of_common_password_managers() -> None:
    assert name_of(uuid.UUID(bytes=AAGUID)) == "1Password"
    assert name_of(uuid.UUID(int=0)) is None
