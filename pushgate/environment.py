"""PUSHGATE_… variables of the environment that are no settings.

Kubernetes sets variables for every Service of a pod's namespace (service links). A Service named
`pushgate` sets PUSHGATE_PORT=tcp://10.0.0.1:8080, but `pushgate gateway` expects a port's number
there. Service links are taken out of the environment. A variable unknown to all commands is
misspelt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, MutableMapping
from difflib import get_close_matches
from typing import Final

from pushgate.launch import LaunchSettings
from pushgate.options import PREFIX
from pushgate.settings import COMMAND_SETTINGS

#: The variable of the image's health check (deploy/docker); no command reads the variable.
_FOREIGN: Final = frozenset({f"{PREFIX}HEALTH_URL"})
#: Names of service links: the address of a Service, and its ports. The link named only _PORT, after
#: the Service, may have a setting's name (PUSHGATE_PORT), and is recognised by its value.
_LINK_NAME: Final = re.compile(
    r"PUSHGATE(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?"
    r"|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
#: The value of a link named _PORT. No setting accepts the value.
_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")


def known_variables() -> frozenset[str]:
    """Return the names of the variables of all commands and of the image."""
    names = {name for settings in COMMAND_SETTINGS.values() for name in settings.model_fields}
    names |= set(LaunchSettings.model_fields)
    return _FOREIGN | {f"{PREFIX}{name.upper()}" for name in names}


def remarks(environment: MutableMapping[str, str]) -> list[str]:
    """Take the service links out of `environment`; return sentences for the operator.

    A sentence about service links, a sentence about unknown variables, or neither. Values are not
    shown: the value of a misspelt name may be a secret.
    """
    links = [name for name, value in environment.items() if _is_service_link(name, value)]
    for name in links:
        del environment[name]
    sentences = []
    if links:
        sentences.append(
            "service links of Kubernetes are no settings, and are ignored; set "
            f"enableServiceLinks: false in the pod's spec: {', '.join(sorted(links))}"
        )
    if unknown := _unknown(environment, known_variables()):
        sentences.append(f"no command knows these variables: {', '.join(unknown)}")
    return sentences


def _is_service_link(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    if name.endswith("_PORT") and _LINK_VALUE.fullmatch(value):
        return True
    return _LINK_NAME.fullmatch(name) is not None


def _unknown(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    """Return the unknown names, with the nearest known name in brackets."""
    names = sorted(name for name in environment if name.upper().startswith(PREFIX))
    return [
        # A cutoff of 0: the nearest name, however far.
        f"{name} (nearest: {get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]})"
        for name in names
        if name.upper() not in known
    ]
