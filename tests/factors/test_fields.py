"""The schemas of credentials: they bound what browsers send, and ignore what is not read."""

from typing import Any

import pytest
from marshmallow import Schema, ValidationError

from service.factors.fields import authentication_credential, registration_credential
from service.http.field_errors import code_of
from tests.support.authenticator import RP_ID, Authenticator, encoded
from tests.support.passkey_faults import FAULTS, Fault

OPTIONS = {
    "challenge": encoded(b"x" * 32),
    "rp": {"id": RP_ID},
    "rpId": RP_ID,
    "user": {"id": encoded(b"the handle")},
}
SCHEMAS = {
    "create": Schema.from_dict({"credential": registration_credential(required=True)})(),
    "get": Schema.from_dict({"credential": authentication_credential(required=True)})(),
}
READ = {
    "create": {"clientDataJSON", "attestationObject", "transports"},
    "get": {"clientDataJSON", "authenticatorData", "signature", "userHandle"},
}


def load(step: str, credential: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = SCHEMAS[step].load({"credential": credential})["credential"]
    return loaded


@pytest.mark.parametrize("step", ["create", "get"])
def test_members_that_are_read_are_kept_and_others_ignored(step: str) -> None:
    authenticator = Authenticator()
    sent = (authenticator.create if step == "create" else authenticator.get)(OPTIONS)
    sent = {**sent, "response": {**sent["response"], "of tomorrow": [1]}, "of tomorrow": {"a": 1}}
    loaded = load(step, sent)
    assert loaded.pop("response") == {name: sent["response"][name] for name in READ[step]}
    assert loaded == {name: sent[name] for name in ("id", "rawId", "type")}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.step}: {fault.name}")
def test_faults_that_the_schema_excludes_are_those_listed(fault: Fault) -> None:
    load(fault.step, fault.right(Authenticator(), OPTIONS))
    wrong = fault.wrong(Authenticator(), OPTIONS)
    if fault.over_http:
        with pytest.raises(ValidationError):
            load(fault.step, wrong)
    else:
        load(fault.step, wrong)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1, "invalid_type"),
        (None, "null"),
        ("", "too_short"),
        ("x" * 2049, "too_long"),
        ("a=", "invalid_characters"),
        ("a+b", "invalid_characters"),
        ("a b", "invalid_characters"),
        ("a\n", "invalid_characters"),
        ("\0", "invalid_characters"),
        ("é", "invalid_characters"),
    ],
)
def test_text_that_is_no_base64url_is_refused_with_its_code(value: Any, code: str) -> None:
    sent = {**Authenticator().create(OPTIONS), "id": value}
    with pytest.raises(ValidationError) as raised:
        load("create", sent)
    messages: Any = raised.value.messages
    (message,) = messages["credential"]["id"]
    assert code_of(message) == code
