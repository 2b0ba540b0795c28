"""How Redis refuses writes while it answers reads: the codes of its errors, and their cures."""

from __future__ import annotations

import re
from typing import Final

NO_PERMISSION: Final = "NOPERM"
READ_ONLY: Final = "READONLY"

#: What is wrong and what to do, by the code that begins the error of Redis.
CURES: Final = {
    "MISCONF": "Redis could not save its last snapshot; mend the disk that it saves to, or set "
    "stop-writes-on-bgsave-error to no",
    "OOM": "the memory of Redis is full; raise its maxmemory, or remove what is not pushgate's",
    "NOREPLICAS": "too few replicas of Redis are in step; mend them, or lower "
    "min-replicas-to-write",
    NO_PERMISSION: "the account in PUSHGATE_REDIS_URL lacks a right; allow it the keys {pg-* and "
    "the commands in docs/operations.md",
    READ_ONLY: "this Redis is a replica; connections are dropped to find the master. Where that "
    "does not help, let PUSHGATE_REDIS_URL name the master or the Sentinels",
}

#: A command's error begins with its code. Redis 6.2 puts the code of an error inside a script
#: behind the script's name and line.
_CODE = re.compile(rf"(?:^|-|\s)({'|'.join(CURES)})\b")
#: Errors that come without their code: of scripts of Redis 6.2 and 7.0, and of redis-py, which
#: translates READONLY behind a Sentinel.
_PHRASES: Final = (
    ("can't run this command or subcommand", NO_PERMISSION),
    ("has no permissions to", NO_PERMISSION),
    ("The previous master is now a slave", READ_ONLY),
)


def refusal_code(text: str) -> str | None:
    """Return the key of `CURES` that an error's text means; None for any other error."""
    if found := _CODE.search(text):
        return found[1]
    return next((code for phrase, code in _PHRASES if phrase in text), None)
