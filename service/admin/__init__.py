"""Account administration for support staff and administrators."""
