"""The base of every error that this package raises."""


class RegistryError(Exception):
    """A message breaks a rule, or the registry can't be used or believed; subclasses say which."""
