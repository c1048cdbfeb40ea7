"""Invalid requests of any operation, made from its description, with the refusal of each.

Each differs in one thing from a request that is accepted. The expected refusal follows from what is
wrong, such as "NUL"; ``EXCEPTIONS`` lists the few operations where it is another.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.support.operations import Operation, Request, Way, ways_of
from tests.support.worlds import NO_ONE

FIELDS, JSON = (422, "invalid_fields"), (400, "malformed_json")
TOO_LARGE, MEDIA = (413, "content_too_large"), (415, "unsupported_media_type")
IMPORT = "worlds_import_world"
# Larger than any body but an imported document.
LARGE = b'{"x": "' + b"x" * 2_200_000 + b'"}'
BOMB = gzip.compress(b'{"x": "' + b"x" * 5_000_000 + b'"}')


class Expected(NamedTuple):
    """A response: its status and code, and the pointers of its errors, or None if it has none."""

    status: int
    code: str
    pointers: frozenset[str] | None = None


class Case(NamedTuple):
    """An invalid request. ``place`` is the pointer or the parameter that is wrong."""

    place: str
    fault: str
    request: Request
    expected: Expected


def at(*pointers: str) -> Expected:
    return Expected(*FIELDS, frozenset(pointers))


# JSON that each type is, as text.
_OF_TYPE = {
    "string": ['"x"'],
    "number": ["7"],
    "boolean": ["true", "false"],
    "array": ["[]", '["x"]'],
    "object": ["{}", '{"x": 1}'],
    "null": ["null"],
}
NUL = {"NUL": '"\\u0000"', "NUL before": '"\\u0000ab"', "NUL between": '"ab\\u0000cd"'}
SURROGATES = {
    "lone high surrogate": '"ab\\ud800"',
    "lone low surrogate": '"\\udfffab"',
    "surrogates in reverse": '"\\ude00\\ud83d"',
}
BASE64 = {
    "padding": "YWI=",
    "standard alphabet": "ab+/",
    "space between": "ab cd",
    "line feed at the end": "abcd\n",
    "letters that are not ASCII": "ab\xe9d",
    "full-width letters": "\uff41\uff42",
    "escaped": "ab%2D",
}
CODES = {
    "letters for a code": "abcdef",
    "code with a space": "123 45",
    "code and a line feed": "12345\n",
    "signed code": "+12345",
    "code with a point": "1234.5",
    "code in other digits": "\u0661\u0662\u0663\u0664\u0665\u0666",
    "code in full-width digits": "\uff11\uff12\uff13\uff14\uff15\uff16",
}
TRANSPORTS = {
    "transport in capitals": "USB",
    "transport and a space": "usb ",
    "underscore": "smart_card",
    "transport with a NUL": "usb\0",
}
UUIDS = {
    "no UUID": "1",
    "empty UUID": "",
    "name for a UUID": "me!",
    "UUID in braces": f"{{{NO_ONE}}}",
    "UUID as a URN": f"urn:uuid:{NO_ONE}",
    "UUID without hyphens": NO_ONE.replace("-", ""),
    "short UUID": NO_ONE[:-1],
    "long UUID": NO_ONE + "0",
    "UUID with another digit": NO_ONE[:-1] + "\u0660",
    "UUID with a letter too far": NO_ONE[:-1] + "g",
    "UUID and a space": NO_ONE + " ",
}
TIMES = {
    "empty time": "",
    "no time": "tomorrow",
    "date": "2126-01-31",
    "time without offset": "2126-01-31T12:00:00",
    "year 0": "0000-01-31T12:00:00Z",
    "year of five digits": "12126-01-31T12:00:00Z",
    "year of two digits": "26-01-31T12:00:00Z",
    "month 13": "2126-13-31T12:00:00Z",
    "day that does not exist": "2126-02-30T12:00:00Z",
    "hour 25": "2126-01-31T25:00:00Z",
    "second 61": "2126-01-31T12:00:61Z",
    "time after the last one": "9999-12-31T23:59:59-01:00",
    "offset of 24 hours": "2126-01-31T12:00:00+24:00",
    "seconds since 1970": "4924843200",
    "time with other digits": "2126-01-31T12:00:0\u0660Z",
}
EMAILS = {
    "empty email": "",
    "no email": "ada",
    "email without a local part": "@example.com",
    "email without a domain": "ada@",
    "two at signs": "ada@b@example.com",
    "space in an email": "ada b@example.com",
    "two dots": "ada@example..com",
    "domain of one label": "ada@localhost",
    "domain that begins with a hyphen": "ada@-example.com",
    "IP for a domain": "ada@[127.0.0.1]",
    "name and email": "Ada <ada@example.com>",
    "two emails": "ada@example.com,eve@example.com",
    "line break in an email": "ada@example.com\r\nBcc: eve@example.com",
    "line feed after an email": "ada@example.com\n",
    "encoded word": "=?utf-8?q?ada?=@example.com",
    "zero-width space in a domain": "ada@exam\u200bple.com",
    "bidi control in an email": "ada\u202e@example.com",
    "label of 64 characters": f"ada@{'x' * 64}.example",
    "email of 255 characters": f"{'x' * 64}@{'x' * 63}.{'x' * 63}.{'x' * 58}.com",
}
# Controls, and what is invisible or turns text round.
HIDDEN = {
    f"U+{ord(char):04X} in a name": f"a{char}b"
    for char in "\t\n\r\x1b\x7f\x85\xad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2028\u2029"
    "\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff\U000e0041"
}
URLS = {
    "no URL": "x",
    "URL of another scheme": "ftp://llm.example",
    "script": "javascript:alert(1)",
    "URL without a scheme": "//llm.example",
    "URL without a host": "https://",
    "space in a URL": "https://llm.example/a b",
    "port beyond 65535": "https://llm.example:65536",
    "host that is not ASCII": "https://\xe9.example",
    "line break in a URL": "https://llm.example/\n",
}
PASSWORDS = {
    "common password": "passwordpassword",
    "password of digits": "123456789012345",
    "password of one character": "aaaaaaaaaaaaaaaaaa",
}
SETTINGS = {
    "NUL in a setting": ('{"x": "a\\u0000"}', "/x"),
    "lone surrogate in a setting": ('{"x": "\\ud800"}', "/x"),
    "NUL in a name": ('{"a\\u0000": 1}', "/a?"),
    "integer beyond 2^53": ('{"x": 9007199254740993}', "/x"),
    "integer beyond 64 bits": ('{"x": 18446744073709551616}', "/x"),
    "number beyond a float": ('{"x": 1e400}', "/x"),
    "number too exact for a float": ('{"x": 0.12345678901234567}', "/x"),
    "fault in an array": ('{"x": [1, {"y": "\\u0000"}]}', "/x/1/y"),
    "too many bytes": (json.dumps({"x": "x" * 16_400}), ""),
    "too many levels": ('{"x":' * 33 + "1" + "}" * 33, "/x" * 32),
}
NUMBERS = {
    "integer beyond 2^53": "9007199254740993",
    "negative beyond 2^53": "-9007199254740993",
    "integer beyond 64 bits": "18446744073709551616",
    "number beyond a float": "1e400",
    "negative beyond a float": "-1e400",
    "number too exact for a float": "0.12345678901234567",
    "number of 300 digits": "9" * 300,
}
BODIES: dict[str, tuple[bytes, tuple[int, str]]] = {
    "empty body": (b"", (400, "empty_body")),
    "white space": (b" \r\n", JSON),
    "one brace": (b"{", JSON),
    "NUL bytes": (b"\0" * 20, JSON),
    "single quotes": (b"{'x': 1}", JSON),
    "comma at the end": (b'{"x": 1,}', JSON),
    "comment": (b'{"x": 1} // x', JSON),
    "line break in a text": (b'{"x": "a\nb"}', JSON),
    "leading zero": (b'{"x": 01}', JSON),
    "plus sign": (b'{"x": +1}', JSON),
    "hexadecimal number": (b'{"x": 0x1}', JSON),
    "undefined": (b'{"x": undefined}', JSON),
    "unknown escape": (b'{"x": "\\x41"}', JSON),
    "brackets": (b"[" * 60_000, JSON),
    "objects": (b'{"x":' * 10_000, JSON),
    "number of 60,000 digits": (b'{"x": ' + b"9" * 60_000 + b"}", JSON),
    "form": (b"email=ada%40example.com", JSON),
    "XML": (b"<?xml version='1.0'?><x/>", JSON),
}
TOP_LEVEL = {
    "top-level array": b"[]",
    "top-level array of an object": b'[{"x": 1}]',
    "top-level text": b'"x"',
    "top-level number": b"7",
    "top-level null": b"null",
    "top-level true": b"true",
}
CONTENT_TYPES = [
    *("", "text/plain", "text/json", "application/xml", "application/jsonp", "nonsense", "*/*"),
    *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
    *("application/json-patch+json", "application/vnd.api+json", "application/json, text/plain"),
    *("application/json; charset=utf-16", "application/json; charset=latin1"),
]
IDEMPOTENCY_KEYS = {
    "empty key": "",
    "space in a key": "a b",
    "key of 256 characters": "x" * 256,
    "key that is not ASCII": "\xe9",
    "tab in a key": "a\tb",
}
ETAGS = {
    "ETag without quotes": (400, "invalid_etag", "1"),
    "ETag without its end": (400, "invalid_etag", '"1'),
    "ETag with another W": (400, "invalid_etag", 'w/"1"'),
    "text after an ETag": (400, "invalid_etag", '"1" x'),
    "asterisk in a list": (400, "invalid_etag", '"1", *'),
    "another version": (412, "precondition_failed", '"0"'),
    "weak ETag": (412, "precondition_failed", 'W/"1"'),
    "no ETags": (412, "precondition_failed", ","),
}

# Where the rule of a class does not hold, by operation.
EXCEPTIONS: dict[tuple[str, str], Expected] = {
    # The streaming parser would misread surrogates, so the document is refused before it is parsed.
    **{(IMPORT, fault): Expected(*JSON) for fault in SURROGATES},
    # It stops at the first bracket.
    (IMPORT, "brackets"): at("#"),
    # A document may be larger than other bodies, but none of its texts. What has no place in it is
    # refused before it is counted.
    (IMPORT, "too large"): Expected(*JSON),
    (IMPORT, "huge exponent"): Expected(*JSON),
    (IMPORT, "tiny one"): Expected(*JSON),
    (IMPORT, "too many values"): at("#/x"),
}


def cases_of(operation: Operation, request: Request, way: Way) -> Iterator[Case]:
    """Yield the cases of an operation whose request is valid.

    ``way`` is how its body is filled. The fields that all ways have are changed in the first alone.
    """
    is_first = way == ways_of(operation)[0]
    for case in _all_cases(operation, request):
        if not is_first and not case.place.startswith(tuple(f"#/{name}" for name in way)):
            continue
        expected = EXCEPTIONS.get((operation.id, case.fault), case.expected)
        of_version = (operation.id, case.place) == (IMPORT, "#/version")
        if of_version and case.fault != "missing" and expected == case.expected:
            # Another version may give it another type.
            expected = Expected(400, "unknown_version")
        yield case._replace(expected=expected)


def _all_cases(operation: Operation, request: Request) -> Iterator[Case]:
    yield from _cases_of_path(operation, request)
    yield from _cases_of_query(operation, request)
    yield from _cases_of_headers(operation, request)
    if operation.fields is not None:
        yield from _cases_of_body(operation, request)
        yield from _cases_of_fields(operation, request)


# Path


def _cases_of_path(operation: Operation, request: Request) -> Iterator[Case]:
    given = dict(zip(operation.path.split("/"), request.path.split("/"), strict=True))
    values = {
        **{fault: quote(text, safe="") for fault, text in UUIDS.items() if text},
        "NUL": "%00",
        "NUL after a UUID": f"{NO_ONE}%00",
        "invalid UTF-8": "%FF",
        "bad percent-encoding": "%zz",
        "dots": "%2e%2e",
        "slash": "..%2F..",
        "unknown UUID": NO_ONE,
        "unknown UUID in capitals": NO_ONE.upper(),
        "long text": "x" * 2000,
    }
    for parameter in operation.named("path"):
        name = f"{{{parameter['name']}}}"
        for fault, value in values.items():
            path = "/".join(
                value if part == name else given[part] for part in operation.path.split("/")
            )
            yield Case(name, fault, request._replace(path=path), Expected(404, "not_found"))


# Query


def _cases_of_query(operation: Operation, request: Request) -> Iterator[Case]:
    parameters = operation.named("query")
    if not parameters:
        return

    def case(place: str, fault: str, query: str, expected: Expected) -> Case:
        return Case(place, fault, request._replace(query=query), expected)

    rest = request.query
    for fault, pair in {"unknown parameter": "surprise=1", "unknown name": "%C3%A9=1"}.items():
        pointer = "?/surprise" if fault == "unknown parameter" else "?/\xe9"
        yield case("?", fault, "&".join(filter(None, [rest, pair])), at(pointer))
    for parameter in parameters:
        name, schema = parameter["name"], parameter["schema"]
        others = "&".join(
            pair for pair in rest.split("&") if pair and pair.partition("=")[0] != name
        )

        def query(*values: str, name: str = name, others: str = others) -> str:
            return "&".join(filter(None, [others, *(f"{name}={value}" for value in values)]))

        place = f"?/{name}"
        good = quote(good_values(schema)[0])
        for fault, values in {
            "bad percent-encoding": ("%zz",),
            "percent sign": ("%",),
            "half of an escape": ("abc%2",),
            "invalid UTF-8": ("%FF%FE",),
            "surrogate as UTF-8": ("abc%ED%A0%80",),
            "overlong NUL": ("%C0%80",),
        }.items():
            yield case(place, fault, query(*values), Expected(400, "malformed_query"))
        duplicate = Expected(400, "duplicate_parameter", frozenset([place]))
        yield case(place, "duplicate parameter", query(good, good), duplicate)
        encoded = f"%{ord(name[0]):02X}{name[1:]}={good}"
        yield case(place, "duplicate in another spelling", f"{query(good)}&{encoded}", duplicate)
        if name == "cursor":
            for fault, value in {
                "forged cursor": "eHh4eHh4",
                "cursor that is not ASCII": "%C3%A9",
            }.items():
                yield case(place, fault, query(value), Expected(400, "invalid_cursor"))
        for fault, text in _wrong_texts(schema):
            value = quote(text, safe="", errors="surrogatepass")
            yield case(place, fault, query(value), at(place))
        if schema.get("format") == "json-object":
            for fault, (text, below) in SETTINGS.items():
                if below and len(text) < 4000:
                    yield case(place, fault, query(quote(text)), at(place + below))


def good_values(schema: Mapping[str, Any]) -> list[str]:
    """Return values of a parameter: all that are listed, or the least and the most."""
    if "enum" in schema:
        return [str(each) for each in schema["enum"]]
    if schema["type"] == "boolean":
        return ["true", "false"]
    if schema["type"] == "integer":
        return [str(schema["minimum"]), str(schema["maximum"])]
    by_format = {
        "uuid": [NO_ONE, NO_ONE.upper()],
        "date-time": ["2126-01-31T12:00:00Z", "0001-01-01T00:00:00+00:00"],
        "idn-email": ["ada@example.com", "Ada@EXAMPLE.com"],
        "json-object": ["{}", '{"ui_theme": "dark"}'],
    }
    return by_format.get(schema.get("format", ""), ["lamp", "'; drop table users; --", "%_%abc"])


def _wrong_texts(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield values of a parameter that violate its schema, by fault."""
    if schema["type"] == "integer":
        yield "below the least", str(schema["minimum"] - 1)
        yield "above the most", str(schema["maximum"] + 1)
        for text in ("-1", "", "1.0", "1e1", "+1", " 1", "1_0", "0x1", "\u0661", "9" * 30, "null"):
            yield f"limit {text!r}"[:40], text
        return
    if schema["type"] == "boolean":
        for text in ("", "1", "True", "yes", "null", "true "):
            yield f"flag {text!r}", text
        return
    yield "NUL", "\0"
    if "enum" in schema:
        for text in ("", "other", schema["enum"][0].upper(), f"{schema['enum'][0]};"):
            yield f"unlisted {text!r}", text
        return
    if "maxLength" in schema:
        yield "too long", "x" * (schema["maxLength"] + 1)
    if schema.get("minLength"):
        yield "too short", "x" * (schema["minLength"] - 1)
    wrong = {"uuid": UUIDS, "date-time": TIMES, "idn-email": EMAILS}.get(schema.get("format", ""))
    yield from (wrong or {}).items()
    if schema.get("format") == "json-object":
        for text in ("", "{", "[]", "1", "null", '{"a": NaN}', '{"a": 1, "a": 2}', "{'a': 1}"):
            yield f"no object {text}", text


# Headers


def _cases_of_headers(operation: Operation, request: Request) -> Iterator[Case]:
    for parameter in operation.named("header"):
        match name := parameter["name"]:
            case "Idempotency-Key":
                for fault, key in IDEMPOTENCY_KEYS.items():
                    expected = Expected(400, "invalid_idempotency_key")
                    changed = {**request.headers, name: key}
                    yield Case(name, fault, request._replace(headers=changed), expected)
            case "If-Match":
                for fault, (status, code, tag) in ETAGS.items():
                    changed = {**request.headers, name: tag}
                    yield Case(
                        name, fault, request._replace(headers=changed), Expected(status, code)
                    )
                if parameter.get("required"):
                    changed = {key: each for key, each in request.headers.items() if key != name}
                    missing = Expected(428, "precondition_required")
                    yield Case(name, "missing", request._replace(headers=changed), missing)


# Body


def _cases_of_body(operation: Operation, request: Request) -> Iterator[Case]:
    whole = json.dumps(request.body).encode()

    def case(fault: str, body: bytes, expected: Expected, **headers: str) -> Case:
        return Case("#", fault, request._replace(body=body).with_headers(**headers), expected)

    for fault, (body, (status, code)) in BODIES.items():
        if body or operation.body_required:
            yield case(fault, body, Expected(status, code))
    for fault, body in {
        "cut JSON": whole[:-1],
        "JSON cut in a text": whole[: whole.index(b'": "') + 5] if b'": "' in whole else b'{"x": "',
        "two documents": whole + whole,
        "one more brace": whole + b"}",
        "byte order mark": b"\xef\xbb\xbf" + whole,
        "UTF-16": whole.decode().encode("utf-16"),
        "UTF-32": whole.decode().encode("utf-32"),
        "invalid UTF-8": whole[:-1] + b', "x": "\xff"}',
        "surrogate as UTF-8": whole[:-1] + b', "x": "\xed\xa0\x80"}',
        "overlong UTF-8": whole[:-1] + b', "x": "\xc0\xaf"}',
        "NaN": whole[:-1] + b', "x": NaN}',
        "infinity": whole[:-1] + b', "x": Infinity}',
        "negative infinity": whole[:-1] + b', "x": -Infinity}',
        "same name twice": whole[:-1] + b', "x": 1, "x": 1}',
        "same name in another spelling": whole[:-1] + b', "xy": 1, "x\\u0079": 1}',
    }.items():
        yield case(fault, body, Expected(*JSON))
    for fault, body in TOP_LEVEL.items():
        yield case(fault, body, at("#"))
    for fault, number in {
        "huge exponent": "1e9999999999999999999",
        "tiny one": "-0e-9999999999999999999",
    }.items():
        body = whole[:-1] + f', "x": {number}}}'.encode()
        yield case(fault, body, at("#/x"))
    for name, pointer in {
        "surprise": "#/surprise",
        "a/b~c": "#/a~1b~0c",
        "__proto__": "#/__proto__",
        "": "#/",
        "\u202e": "#/\u202e",
    }.items():
        body = json.dumps({**request.body, name: 1}).encode()
        yield case(f"unknown field {name!r}", body, at(pointer))
    for content_type in CONTENT_TYPES:
        yield case(f"type {content_type!r}", whole, Expected(*MEDIA), Content_Type=content_type)
    for coding in ("br", "zstd", "compress", "gzip, gzip"):
        unknown = Expected(415, "unsupported_content_encoding")
        yield case(f"coding {coding}", whole, unknown, Content_Encoding=coding)
    for fault, body in {
        "no gzip": whole,
        "cut gzip": gzip.compress(whole)[:-4],
        "gzip and more": gzip.compress(whole) + b"x",
    }.items():
        yield case(fault, body, Expected(400, "malformed_body"), Content_Encoding="gzip")
    yield case("gzip bomb", BOMB, Expected(*TOO_LARGE), Content_Encoding="gzip")
    values = json.dumps({"x": [1] * 7000}).encode()
    yield case("too many values", values, Expected(*TOO_LARGE))
    yield case("too large", LARGE, Expected(*TOO_LARGE))


def _cases_of_fields(operation: Operation, request: Request) -> Iterator[Case]:
    assert operation.fields is not None
    for path, schema, value in walk(operation.fields, request.body, ()):
        for fault, json_text, below in _wrong_values(schema, value, path[-1] if path else ""):
            place = "#" + "".join(f"/{part}" for part in path)
            body = with_value(request.body, path, json_text)
            expected = at(place + below)
            yield Case(place, fault, request._replace(body=body), expected)
        for name in schema.get("required", ()):
            place = "#" + "".join(f"/{part}" for part in (*path, name))
            body = json.dumps(without(request.body, (*path, name))).encode()
            yield Case(place, "missing", request._replace(body=body), at(place))


def optional_fields(operation: Operation, request: Request) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each field of the body that is not required."""
    assert operation.fields is not None
    for path, schema, value in walk(operation.fields, request.body, ()):
        if isinstance(value, dict):
            for name in value:
                if name not in schema.get("required", ()):
                    yield *path, name


def walk(
    schema: Mapping[str, Any], value: Any, path: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any], Any]]:
    """Yield each place of a valid body with its schema and value."""
    yield path, schema, value
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from walk(inner, value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from walk(schema["items"], value[0], (*path, 0))


def _wrong_values(
    schema: Mapping[str, Any], value: Any, name: Any
) -> Iterator[tuple[str, str, str]]:
    """Yield JSON that violates the schema: the fault, the text, and where below its place.

    ``value`` is a valid one. The body itself, which has no name, has cases of its own.
    """
    types = schema.get("type")
    if types is None:
        return
    types = types if isinstance(types, list) else [types]
    also = {"integer": "number"}
    allowed = {also.get(each, each) for each in types}
    for other in _OF_TYPE.keys() - allowed:
        if name != "":
            for text in _OF_TYPE[other]:
                yield f"{text} for another type", text, ""
    if "string" in types:
        for fault, text in _wrong_strings(schema).items():
            yield fault, text, ""
    elif "number" in allowed:
        for fault, text in NUMBERS.items():
            yield fault, text, ""
        if "integer" in types:
            for text in ("1.5", str(schema["minimum"] - 1), str(schema["maximum"] + 1), "1e16"):
                yield f"integer {text}", text, ""
    elif "array" in types:
        if "maxItems" in schema:
            yield "too many", json.dumps([NO_ONE] * (schema["maxItems"] + 1)), ""
        if schema.get("uniqueItems"):
            yield "twice the same", json.dumps([NO_ONE, NO_ONE]), ""
    elif schema.get("additionalProperties") is True:
        for fault, (text, below) in SETTINGS.items():
            yield fault, text, below
    elif "object" in types and name != "" and "additionalProperties" in schema:
        yield "unknown member", json.dumps({**value, "surprise": 1}), "/surprise"
        yield "member with a slash", json.dumps({**value, "a/b": 1}), "/a~1b"


def _wrong_strings(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return JSON texts that violate the schema of a string, by fault."""
    wrong = {**NUL, **SURROGATES}
    if "enum" in schema:
        one = schema["enum"][0]
        for text in ("", "other", one.upper(), f" {one}", f"{one}\n", f"{one}\u200b"):
            wrong[f"unlisted {text!r}"] = json.dumps(text)
        return wrong
    if "maxLength" in schema:
        wrong["too long"] = json.dumps("x" * (schema["maxLength"] + 1))
        longer = "\U0001f600" * (schema["maxLength"] + 1)
        wrong["too long in other letters"] = json.dumps(longer, ensure_ascii=False)
    if schema.get("minLength"):
        wrong["too short"] = json.dumps("x" * (schema["minLength"] - 1))
        wrong["empty"] = '""'
    by_format = {
        "uuid": UUIDS,
        "date-time": TIMES,
        "idn-email": EMAILS,
        "display-name": HIDDEN,
        "http-url": {fault: text for fault, text in URLS.items() if text},
        "base64url": BASE64,
        "one-time-code": CODES,
        "transport": TRANSPORTS,
        "password": PASSWORDS if schema.get("minLength", 0) > 1 else {},
    }
    for fault, text in by_format.get(schema.get("format", ""), {}).items():
        wrong[fault] = json.dumps(text)
    if "format" not in schema and schema.get("pattern", "").startswith("^[A-Z"):
        for text in ("", "e", "english!", "en_GB", "en-", "\xe9n"):
            wrong[f"language {text!r}"] = json.dumps(text)
    return wrong


def with_value(body: Any, path: tuple[Any, ...], json_text: str) -> bytes:
    """Return the body as JSON, with a text of JSON in this place."""
    if not path:
        return json_text.encode()
    mark = "a value that stands for another"
    changed = json.loads(json.dumps(body))
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = mark
    return json.dumps(changed).replace(f'"{mark}"', json_text).encode()


def without(body: Any, path: tuple[Any, ...]) -> Any:
    """Return the body without the member in this place."""
    changed = json.loads(json.dumps(body))
    place = changed
    for part in path[:-1]:
        place = place[part]
    del place[path[-1]]
    return changed


# What is accepted


EXACT = {
    "two directions": "\u200fשלום\u200f world سلمان",
    "emoji of several code points": "👩\u200d🚀🏴\U000e0067\U000e0062\U000e007f",
    "letters in two parts": "e\u0301 n\u0303 \u1100\u1161",
    "spaces around": "  \t a \r\n b \n ",
    "controls": "\x01\x1b[2J\x7f\x85\ufeff\u200b\u202e\uffff",
    "markup": "<script>alert(1)</script> {{7*7}} ${jndi:ldap://a}",
    "SQL": "'); drop table users; -- \\ %s %(a)s $1",
}
EXACT_NAMES = {
    "right to left": "سلمان שלום",
    "joiner where it belongs": "می\u200cخواهم 👩\u200d🚀",
    "letters in two parts": "Ame\u0301lie",
    "spaces around": "  Ada  ",
    "markup": EXACT["markup"],
    "SQL": EXACT["SQL"],
    "capitals that fold": "ẞtraße İstanbul ΑΣ",
}
# Texts that are no one's to choose.
_CHOSEN = {"token", "refresh_token", "version", "challenge", "challenge_id", "recovery_code"}


class Text(NamedTuple):
    """A valid request with a text, and where its response has that."""

    place: tuple[Any, ...]
    name: str
    text: str
    request: Request

    def put_into(self, request: Request) -> "Text":
        """Return the text in another request of the same operation."""
        body = with_value(request.body, self.place, json.dumps(self.text))
        return self._replace(request=request._replace(body=body))


def texts_of(operation: Operation, request: Request) -> Iterator[Text]:
    """Yield requests with each text that a free field takes as it is."""
    if operation.fields is None:
        return
    for path, schema, _ in walk(operation.fields, request.body, ()):
        kind = schema.get("type")
        is_text = kind == "string" or (isinstance(kind, list) and "string" in kind)
        free = is_text and "enum" not in schema and path[-1] not in _CHOSEN
        format_ = schema.get("format", "")
        if not free or schema.get("pattern", "").startswith("^[A-Z"):
            continue
        for name, text in {"": EXACT, "display-name": EXACT_NAMES}.get(format_, {}).items():
            yield Text(path, name, text, request).put_into(request)
