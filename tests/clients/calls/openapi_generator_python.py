"""Calls with a client that openapi-generator made."""

import os
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.environ["GENERATED"])

import openapi_client as shinkei
from openapi_client.exceptions import ApiException

URL = os.environ["SHINKEI_URL"]
EMAIL = f"{os.environ['CLIENT']}@example.com"
PASSWORD = "a passphrase of the client's"


def report(operation: str, result: object) -> None:
    print(f"{operation}: {result}", flush=True)


def failure(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return the problem that a call fails with."""
    try:
        call(*arguments, **options)
    except ApiException as error:
        problem = error.data
        assert isinstance(problem, shinkei.Problem), problem
        pointers = [each.pointer for each in problem.errors or ()]
        return " ".join([str(problem.status), problem.code, *pointers])
    raise AssertionError("no failure")


def connect(token: str | None = None) -> shinkei.ApiClient:
    return shinkei.ApiClient(shinkei.Configuration(host=URL, access_token=token))


def sign_in(email: str, password: str) -> shinkei.ApiClient:
    login = shinkei.Login(email=email, password=password)
    return connect(shinkei.SessionsApi(anonymous).sessions_login(login).access_token)


anonymous = connect()
registered = shinkei.UsersApi(anonymous).users_register(
    shinkei.Register(email=EMAIL, password=PASSWORD)
)
assert isinstance(registered, shinkei.Registered), registered
report("users_register", registered.user.role)

client = sign_in(EMAIL, PASSWORD)
report("sessions_login", "bearer")
users = shinkei.UsersApi(client)

me = users.users_read_me_with_http_info()
assert isinstance(me.data, shinkei.OwnProfile), me
assert me.data.email == EMAIL
report("users_read_me", "its email")

settings = shinkei.SettingsPatch(ui_theme="dark")
settings.additional_properties["editor"] = {"tabs": [2, None]}
merged = users.users_merge_me(
    shinkei.MergeProfile(settings=settings), if_match=(me.headers or {})["ETag"]
)
assert merged.settings.additional_properties["editor"] == {"tabs": [2, None]}
report("users_merge_me", merged.settings.ui_theme)

sessions = shinkei.SessionsApi(client).sessions_list_mine()
assert isinstance(sessions, shinkei.OwnSessionPage), sessions
report("sessions_list_mine", f"{len(sessions.items)} sessions")

administrator = sign_in(os.environ["ADMIN_EMAIL"], os.environ["ADMIN_PASSWORD"])
accounts = shinkei.AdminApi(administrator).admin_list_users(
    email=EMAIL, role="user", sort="-email", settings='{"ui_theme": "dark"}', count="exact"
)
assert all(each.settings.ui_theme == "dark" for each in accounts.items)
report("admin_list_users", f"{accounts.count} account")

login = shinkei.Login(email=EMAIL, password="another passphrase")
report("sessions_login", failure(shinkei.SessionsApi(anonymous).sessions_login, login))

register = shinkei.Register(email="no email", password=PASSWORD)
report("users_register", failure(shinkei.UsersApi(anonymous).users_register, register))

name = shinkei.MergeProfile(name="Ada")
report("users_merge_me", failure(users.users_merge_me, name, if_match='"1"'))
