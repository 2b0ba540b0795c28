"""The commands, a file each: a command imports only what it runs."""
