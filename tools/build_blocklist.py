#!/usr/bin/env python3
"""Build service/auth/blocklist.bin from packages that public registries serve.

    pip download --no-deps --only-binary :all: --dest DIR zxcvbn==4.5.0 django==5.2.19
    npm pack --pack-destination DIR @zxcvbn-ts/language-common@4.1.3
    python -m tools.build_blocklist DIR service/auth/blocklist.bin

The output is reproducible. Sources, with the licence that each package carries:

- @zxcvbn-ts/language-common 4.1.3, MIT, (c) 2012-2016 Dan Wheeler and Dropbox, Inc., (c) 2021
  @zxcvbn-ts: passwords by frequency.
- zxcvbn 4.5.0, MIT, (c) 2016 Daniel Wolf: passwords, English words, first and last names.
- Django 5.2.19, BSD-3-Clause, (c) Django Software Foundation and individual contributors: the
  common passwords that Royce Williams compiled.

Left out are zxcvbn's film and television words, whose origin may be share-alike, and John the
Ripper's list, which claims to be public domain inside a GPL-2 package. Repeated and padded
passwords and keyboard walks need no entries: service.auth.blocklist detects them.
"""

import ast
import gzip
import hashlib
import json
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from service.auth import blocklist

# Bytes of a digest. One lookup in 2**40 / entries is a false positive.
WIDTH = 5

PACKAGES = {
    "zxcvbn-ts-language-common-4.1.3.tgz": (
        "bf3027c16c069d7877e25dc8751bc819e10e479afcc5ee1a323eb2ab73129ca9"
    ),
    "zxcvbn-4.5.0-py2.py3-none-any.whl": (
        "2b6eed621612ce6d65e6e4c7455b966acee87d0280e257956b1f06ccc66bd5ff"
    ),
    "django-5.2.19-py3-none-any.whl": (
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"
    ),
}

ZXCVBN_LISTS = ("passwords", "english_wikipedia", "surnames", "female_names", "male_names")

# The service's own name, and well-known long phrases that the lists above lack.
PHRASES = """
    shinkei
    correct horse battery staple
    the quick brown fox jumps over the lazy dog
    to be or not to be that is the question
    may the force be with you
    once upon a time
    it was the best of times
    in the beginning was the word
    in the beginning god created
    four score and seven years ago
    we the people of the united states
    all your base are belong to us
    i love you forever
    i love you so much
    happy birthday to you
    merry christmas
    winter is coming
    never gonna give you up
    this is my password
    this is a password
    my password is password
    this is not a password
    i forgot my password
    what is my password
    enter your password
    incorrect password
    the password is password
    change this password
    correct password
    secure password
    strong password
    super secret password
    my secret password
    default password
    temporary password
    administrator
    administrator password
    let me in please
    open sesame
    please let me in
    supercalifragilisticexpialidocious
    antidisestablishmentarianism
    pneumonoultramicroscopicsilicovolcanoconiosis
    llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch
"""


def main(packages: Path, output: Path) -> None:
    entries = {blocklist._fold(password) for password in passwords(packages)}
    if longest := [entry for entry in entries if len(entry) > blocklist.LISTED_MAX_LENGTH]:
        raise ValueError(f"too long to be looked up: {longest}")
    digests = sorted(
        {blocklist._digest(entry, WIDTH) for entry in entries if len(entry) > blocklist.SHORT}
    )
    body = b"".join(digests)
    probe = blocklist._digest(blocklist._fold(blocklist.PROBE), 8)
    header = blocklist.HEADER.pack(blocklist.MAGIC, len(digests), WIDTH, probe, zlib.crc32(body))
    output.write_bytes(header + body)
    sys.stdout.write(f"{len(digests)} entries, {len(header + body)} bytes\n")


def passwords(packages: Path) -> Iterable[str]:
    """Yield the passwords of all sources, unnormalized. Raises ValueError for another package."""
    for name, sha256 in PACKAGES.items():
        if hashlib.sha256((packages / name).read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{name} is not the expected package")
    common, zxcvbn, django = (packages / name for name in PACKAGES)
    with tarfile.open(common) as archive:
        member = archive.extractfile("package/src/passwords.json")
        yield from json.load(member) if member else ()
    with zipfile.ZipFile(zxcvbn) as archive:
        yield from zxcvbn_words(archive.read("zxcvbn/frequency_lists.py").decode())
    with zipfile.ZipFile(django) as archive:
        packed = archive.read("django/contrib/auth/common-passwords.txt.gz")
        yield from gzip.decompress(packed).decode().splitlines()
    for line in PHRASES.strip().splitlines():
        phrase = line.strip()
        yield from (phrase, phrase.replace(" ", ""))


def zxcvbn_words(source: str) -> Iterable[str]:
    """Parse the module, a dict of ``"word,word,…".split(",")``, without running it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ZXCVBN_LISTS:
                    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
                        raise ValueError(f"zxcvbn's list {key.value} has an unexpected form")
                    yield from ast.literal_eval(value.func.value).split(",")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
