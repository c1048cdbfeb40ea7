"""What operators are told about the life of the service, from its settings to its end."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service import __version__
from service.settings import Settings
from service.settings.unknown import find_unknown

log = logging.getLogger(__name__)


@dataclass
class Announcer:
    """Logs the start and the stop of the service, whose database may be ``embedded``.

    ``greet`` is called with the URL once requests are accepted.
    """

    settings: Settings
    embedded: bool
    greet: Callable[[str], None]
    has_started: bool = False
    stop_began: float | None = None

    def started(self, url: str) -> None:
        self.has_started = True
        settings = self.settings
        assert settings.database is not None  # noqa: S101
        log.info(
            "started",
            extra={
                "url": url,
                "metrics_port": settings.metrics_port or None,
                "version": __version__,
                "pid": os.getpid(),
                "workers": settings.workers,
                "database": f"{settings.database.address}/{settings.database.name}",
                "data_dir": str(settings.data_dir) if self.embedded else None,
                "python": ".".join(map(str, sys.version_info[:3])),
            },
        )
        self.greet(url)

    def stopping(self, received: signal.Signals) -> None:
        """Log the first stop signal, unless nothing had started."""
        if self.has_started and self.stop_began is None:
            self.stop_began = time.monotonic()
            log.info("stopping", extra={"signal": received.name})

    def stopped(self) -> None:
        if self.stop_began is not None:
            log.info("stopped", extra={"took_s": seconds_since(self.stop_began)})


def warn_of_unknown(environ: Mapping[str, str]) -> None:
    """Log the variables that were probably meant as settings, without their values."""
    for name, meant in find_unknown(environ):
        log.warning("unknown variable", extra={"variable": name, "did_you_mean": meant or None})


def seconds_since(began: float) -> float:
    """Return the seconds since a time of ``time.monotonic``, for the log."""
    return round(time.monotonic() - began, 3)
