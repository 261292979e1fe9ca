"""What is wrong with a compose file, with the place, and what is only worth knowing.

Owns collecting: a reader goes on after a mistake, so that all are told at once. Must not decide what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from overlace.model.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    mark: Mark | None
    path: str  # "services.web.deploy.replicas"; "" for the file as a whole
    text: str

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.mark, self.path, self.text) if part)


class ComposeError(InvalidArgument):
    """Compose files that cannot be deployed; one line per problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(slots=True)
class Problems:
    """What was found so far."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, mark: Mark | None, path: str, text: str) -> None:
        self._add(self.errors, mark, path, text)

    def warn(self, mark: Mark | None, path: str, text: str) -> None:
        self._add(self.warnings, mark, path, text)

    def _add(self, to: list[Problem], mark: Mark | None, path: str, text: str) -> None:
        problem = Problem(mark, path, text)
        if problem not in to:
            to.append(problem)

    def check(self) -> None:
        """Raises ComposeError when anything is wrong."""
        if self.errors:
            raise ComposeError(self.errors)
