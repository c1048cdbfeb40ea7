"""Settings, read from the environment once, validated before anything starts, then frozen."""

from service.settings.connections import Database, MailServer, default_origin, http_origin, is_local
from service.settings.environment import load_settings
from service.settings.mail import is_full_name, split_sender
from service.settings.model import GROUPS, VARIABLES, Settings
from service.settings.variables import Rate, SettingsError, Variable, has_passkeys

__all__ = [
    "GROUPS",
    "VARIABLES",
    "Database",
    "MailServer",
    "Rate",
    "Settings",
    "SettingsError",
    "Variable",
    "default_origin",
    "has_passkeys",
    "http_origin",
    "is_full_name",
    "is_local",
    "load_settings",
    "split_sender",
]
