"""The base of every error that this package raises."""


class RegistryError(Exception):
    """A message breaks a rule, or the registry can't be used; subclasses say which of the two."""
