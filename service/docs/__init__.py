"""The documentation page at /docs: read the API's description and try it."""
