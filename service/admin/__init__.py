"""Administration: other people's accounts."""
