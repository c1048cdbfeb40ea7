"""Worlds, the events on their timelines, and the stories in them, made of beats."""
