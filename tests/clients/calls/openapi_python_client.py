"""Calls with a client that openapi-python-client made."""

import os
import sys
from typing import Any

sys.path.insert(0, os.environ["GENERATED"])

from openapi_python import AuthenticatedClient, Client, models
from openapi_python.api.admin import admin_list_users
from openapi_python.api.sessions import sessions_list_mine, sessions_login
from openapi_python.api.users import users_merge_me, users_read_me, users_register

URL = os.environ["SHINKEI_URL"]
EMAIL = f"{os.environ['CLIENT']}@example.com"
PASSWORD = "a passphrase of the client's"


def report(operation: str, result: object) -> None:
    print(f"{operation}: {result}", flush=True)


def describe(problem: Any) -> str:
    assert isinstance(problem, models.Problem), problem
    pointers = [error.pointer for error in problem.errors or ()]
    return " ".join([str(problem.status), problem.code, *pointers])


def sign_in(email: str, password: str) -> AuthenticatedClient:
    tokens = sessions_login.sync(
        client=anonymous, body=models.Login(email=email, password=password)
    )
    assert isinstance(tokens, models.Tokens), tokens
    return AuthenticatedClient(base_url=URL, token=tokens.access_token)


anonymous = Client(base_url=URL)
registered = users_register.sync(
    client=anonymous, body=models.Register(email=EMAIL, password=PASSWORD)
)
assert isinstance(registered, models.Registered), registered
assert registered.user.role is models.OwnProfileRole.USER
report("users_register", registered.user.role)

client = sign_in(EMAIL, PASSWORD)
report("sessions_login", "bearer")

me = users_read_me.sync_detailed(client=client)
assert isinstance(me.parsed, models.OwnProfile), me
assert me.parsed.email == EMAIL
report("users_read_me", "its email")

settings = models.SettingsPatch(ui_theme=models.SettingsPatchUiTheme.DARK)
settings["editor"] = {"tabs": [2, None]}
merged = users_merge_me.sync(
    client=client, body=models.MergeProfile(settings=settings), if_match=me.headers["ETag"]
)
assert isinstance(merged, models.OwnProfile), merged
assert merged.settings["editor"] == {"tabs": [2, None]}
report("users_merge_me", merged.settings.ui_theme)

sessions = sessions_list_mine.sync(client=client)
assert isinstance(sessions, models.OwnSessionPage), sessions
report("sessions_list_mine", f"{len(sessions.items)} sessions")

accounts = admin_list_users.sync(
    client=sign_in(os.environ["ADMIN_EMAIL"], os.environ["ADMIN_PASSWORD"]),
    email=EMAIL,
    role=models.AdminListUsersRole.USER,
    sort=models.AdminListUsersSort.DESCENDING_EMAIL,
    settings='{"ui_theme": "dark"}',
    count=models.AdminListUsersCount.EXACT,
)
assert isinstance(accounts, models.AdminUserPage), accounts
assert all(each.settings.ui_theme == "dark" for each in accounts.items)
report("admin_list_users", f"{accounts.count} account")

login = models.Login(email=EMAIL, password="another passphrase")
report("sessions_login", describe(sessions_login.sync(client=anonymous, body=login)))

register = models.Register(email="no email", password=PASSWORD)
report("users_register", describe(users_register.sync(client=anonymous, body=register)))

stale = users_merge_me.sync(client=client, body=models.MergeProfile(name="Ada"), if_match='"1"')
report("users_merge_me", describe(stale))
