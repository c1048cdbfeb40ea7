"""Copy the parts of Swagger UI that the page at /docs needs from its package, with licences.

    npm pack swagger-ui-dist@<version>
    python tools/vendor_swagger_ui.py swagger-ui-dist-<version>.tgz

The bundle is stored compressed, as it is sent. For another version, set VERSION, and INTEGRITY to
the output of `npm view swagger-ui-dist@<version> dist.integrity`.
"""

import base64
import gzip
import hashlib
import sys
import tarfile
from pathlib import Path

VERSION = "5.35.0"
INTEGRITY = (
    "sha512-"
    "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ=="
)
TARGET = Path(__file__).parents[1] / "service" / "docs" / "swagger_ui"
SENT = ("swagger-ui-bundle.js", "swagger-ui.css")
KEPT = ("LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt")


def main(package: Path) -> None:
    digest = hashlib.sha512(package.read_bytes()).digest()
    if f"sha512-{base64.b64encode(digest).decode()}" != INTEGRITY:
        sys.exit(f"{package}: does not match INTEGRITY")
    with tarfile.open(package) as archive:
        for name in (*SENT, *KEPT):
            member = archive.extractfile(f"package/{name}")
            assert member is not None
            content = member.read()
            if name in SENT:
                (TARGET / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))
            else:
                (TARGET / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
