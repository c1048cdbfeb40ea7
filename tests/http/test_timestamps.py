"""Times that clients send: all of RFC 3339 §5.6, and nothing else."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.fields import Timestamp
from tests.support.clients import Client
from tests.support.factories import assert_problem, pointers, register, register_as

FILTERS = [
    ("/api/v1/users", "created_after"),
    ("/api/v1/users", "created_before"),
    ("/api/v1/audit-events", "occurred_after"),
    ("/api/v1/audit-events", "occurred_before"),
]
# Each time, and the microsecond in UTC as which it is read.
TIMES = {
    "2126-01-31T12:00:00Z": "2126-01-31T12:00:00",
    "2126-01-31t12:00:00z": "2126-01-31T12:00:00",
    "2126-01-31T12:00:00.5Z": "2126-01-31T12:00:00.500000",
    "2126-01-31T12:00:00.123456999Z": "2126-01-31T12:00:00.123456",
    "2126-01-31T12:00:00." + "9" * 300 + "Z": "2126-01-31T12:00:00.999999",
    "2126-01-31T12:00:00-00:00": "2126-01-31T12:00:00",
    "2126-01-31T12:00:00+23:59": "2126-01-30T12:01:00",
    "2128-02-29T12:00:00Z": "2128-02-29T12:00:00",
    # A leap second is read as the second after it.
    "2126-12-31T23:59:60Z": "2127-01-01T00:00:00",
    "2126-12-31T15:59:60.25-08:00": "2127-01-01T00:00:00.250000",
}
WRONG = (
    *("2126-01-31", "2126-01-31T12:00:00", "2126-01-31T12:00Z", "2126-01-31 12:00:00Z", ""),
    *("2126-01-31T24:00:00Z", "2126-01-31T12:60:00Z", "2126-01-31T12:00:61Z", "21260131T120000Z"),
    *("2126-02-29T12:00:00Z", "2126-00-01T12:00:00Z", "2126-01-00T12:00:00Z"),
    *("2126-01-31T12:00:00.Z", "2126-01-31T12:00:00,5Z", "2126-W05-4T12:00:00Z"),
    *("2126-01-31T12:00:00+24:00", "2126-01-31T12:00:00+01:60", "2126-01-31T12:00:00+0100"),
    *(
        "2126-01-31T12:00:00 Z",
        "2126-01-31T12:00:00Z ",
        "2126-01-31T12:00:00Z\n",
        "２126-01-31T12:00:00Z",
    ),
    *("9999-12-31T23:59:60Z", "9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01"),
    *("0000-01-01T00:00:00Z", "12126-01-31T12:00:00Z"),
    # Leap seconds are the last of a day in UTC (RFC 3339 §5.7).
    *("2126-12-31T12:00:60Z", "2126-12-31T23:58:60Z", "2126-12-31T23:59:60-08:00"),
)


async def test_every_form_of_rfc_3339_is_taken_by_filters(client: Client) -> None:
    admin = await register_as(client, "admin")
    for path, name in FILTERS:
        for time in TIMES:
            response = await client.get(path, params={name: time}, headers=admin.headers)
            assert response.status == 200, (name, time, await response.text())


async def test_every_form_of_rfc_3339_is_taken_as_the_end_of_a_suspension(client: Client) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    path = f"/api/v1/users/{account.profile['id']}/suspend"
    for time, read_as in TIMES.items():
        body = {"reason": "spam", "until": time}
        response = await client.post(path, json=body, headers=admin.headers)
        until = datetime.fromisoformat((await response.json())["suspended_until"])
        assert until.replace(tzinfo=None) == datetime.fromisoformat(read_as), time


async def test_other_times_are_rejected_with_a_pointer(client: Client) -> None:
    admin = await register_as(client, "admin")
    path = f"/api/v1/users/{admin.profile['id']}/suspend"
    for time in WRONG:
        body = {"reason": "spam", "until": time}
        response = await client.post(path, json=body, headers=admin.headers)
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {"#/until"}, time


@st.composite
def times(draw: st.DrawFn) -> tuple[str, datetime]:
    """Generate a time of RFC 3339 and the microsecond in UTC that it means."""
    days = draw(st.integers(-300_000, 2_000_000))
    moment = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days, draw(st.integers(0, 86_399)))
    minutes = draw(st.integers(-1439, 1439))
    leap = draw(st.booleans())
    if leap:
        moment = moment.replace(hour=23, minute=59, second=59)
    digits = draw(st.text("0123456789", max_size=12))
    moment = moment.replace(microsecond=int(f"{digits[:6]:0<6}"))
    shown = moment.astimezone(timezone(timedelta(minutes=minutes))).strftime("%Y-%m-%d_%H:%M:%S")
    sign, (hour, minute) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    offsets = [f"{sign}{hour:02}:{minute:02}"] + (["Z", "z", "-00:00"] if minutes == 0 else [])
    text = shown.replace("_", draw(st.sampled_from("Tt")))
    if leap:
        text = f"{text[:-2]}60"
    text += (f".{digits}" if digits else "") + draw(st.sampled_from(offsets))
    return text, moment + timedelta(seconds=leap)


@pytest.mark.property
@given(times())
def test_time_is_read_to_the_microsecond(case: tuple[str, datetime]) -> None:
    text, expected = case
    assert Timestamp().deserialize(text) == expected
