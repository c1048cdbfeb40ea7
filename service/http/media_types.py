"""The media types of request bodies."""

from collections.abc import Collection

JSON = "application/json"
# Every PATCH merges (RFC 7396), whichever of its types the body has.
_OF_PATCH = ("application/merge-patch+json", JSON)


def media_types(method: str) -> tuple[str, ...]:
    """Return the types that a method takes."""
    return _OF_PATCH if method == "PATCH" else (JSON,)


def accept_patch(methods: Collection[str]) -> dict[str, str]:
    """Return the Accept-Patch header of a resource with these methods (RFC 5789 §3.1), if any."""
    return {"Accept-Patch": ", ".join(_OF_PATCH)} if "PATCH" in methods else {}
