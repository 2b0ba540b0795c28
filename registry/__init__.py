"""Shared by gateways and processors: the registry of nodes and users, and the message format."""
