"""Take what the page at /docs needs of Swagger UI out of its package, with its licences.

    npm pack swagger-ui-dist@5.35.0
    python tools/vendor_swagger_ui.py swagger-ui-dist-5.35.0.tgz

The bundle is kept compressed, as it is sent: a third of the size, and nothing to do at run time.
For another version, change INTEGRITY to what `npm view swagger-ui-dist@<version> dist.integrity`
says.
"""

import base64
import gzip
import hashlib
import sys
import tarfile
from pathlib import Path

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
        sys.exit(f"{package}: not the package that INTEGRITY stands for")
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
