"""A message to bytes, inbound bytes to events: one file a transport."""
