"""The page at /docs: the description of the API, to read and to try."""
