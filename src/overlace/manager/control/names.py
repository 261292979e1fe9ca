"""Which names are allowed, and names for services nobody named.

Owns the rules (swarmkit controlapi/common.go) and the word lists. Must not look anything up.
"""

from __future__ import annotations

import re
import secrets

from overlace.manager.control.base import swarm
from overlace.model.errors import InvalidArgument

_DNS_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9])*")
_SECRET_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-_.]*[a-zA-Z0-9])?")

_ADJECTIVES = """
    able amber ample apt avid bold brave bright brisk calm candid civil clear clever crisp deft eager
    early earnest even fair fleet fond frank fresh gentle glad good grand hale happy hardy hearty honest
    humble keen kind lively loyal lucid mellow merry mild modest neat nimble noble patient placid plain
    polite prompt proud quick quiet ready rosy serene sharp simple sincere sleek smooth snug sober solid
    spry stately steady still stout sunny sure swift tender tidy trim true upbeat vivid warm wise witty
    zesty
""".split()  # noqa: SIM905  a list of words reads best as text
_SURNAMES = """
    abel ampere avogadro babbage bell bernoulli bohr boole born bose brahe cantor carson cavendish celsius
    church copernicus coulomb curie dalton darwin davy descartes dijkstra dirac einstein erdos euclid
    euler faraday fermat fermi feynman fibonacci fourier franklin galileo galois gauss germain goedel
    goodall hamilton hawking heisenberg hertz hilbert hooke hopper hubble huygens hypatia joule kelvin
    kepler knuth lagrange lamarr laplace leibniz linnaeus lovelace mach maxwell meitner mendel napier nash
    newton nobel noether ohm pascal pasteur pauli planck poincare ptolemy ramanujan riemann ritchie
    rutherford sagan shannon tesla torvalds turing volta watt wiles
""".split()  # noqa: SIM905  a list of words reads best as text


def random_name() -> str:
    """`adjective_surname`, as Docker invents for a service without a name."""
    return f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_SURNAMES)}"


def check_dns_name(name: str) -> None:
    """Names of services and networks. Raises InvalidArgument."""
    if not name:
        raise swarm(InvalidArgument("name must be provided"))
    if not _DNS_NAME.fullmatch(name):
        raise swarm(InvalidArgument("name must be valid as a DNS name component"))
    if len(name) > 63:
        raise swarm(InvalidArgument("name must be 63 characters or fewer"))


def check_secret_name(name: str) -> None:
    """Names of secrets and configs. Raises InvalidArgument."""
    if not name:
        raise swarm(InvalidArgument("name must be provided"))
    if len(name) > 64 or not _SECRET_NAME.fullmatch(name):
        raise swarm(
            InvalidArgument(
                "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character"
                " must be [a-zA-Z0-9]"
            )
        )
