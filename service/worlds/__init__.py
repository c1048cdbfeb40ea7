"""Worlds, the events on their timelines, and the stories and beats that are told in them."""
