"""What a survey of a data set found: findings with their mends, and the report of all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from minimask.errors import one_line

REFUSED, HARMFUL, NOTE = "refused", "harmful", "note"
LEVELS = (REFUSED, HARMFUL, NOTE)
"""Training refuses the data; it takes them, but learns worse from them; something to know."""

MOST = 5  # examples shown


@dataclass(frozen=True)
class Finding:
    """Something about a data set.

    Attributes
    ----------
    level : one of `LEVELS`
    kind : str
        A name of the problem, the same for all data.
    data : str
        The file's name.
    text, mend : str
        What is the matter, and what to do.
    count, total : int
        How many have it, of how many; `what` they are.
    examples : tuple of str
        The first ones.
    """

    level: str
    kind: str
    data: str
    text: str
    mend: str
    count: int = 1
    total: int = 1
    what: str = "files"
    examples: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The finding as text, without control characters."""
        share = f"{self.count} of {self.total} {self.what}: " if self.total > 1 else ""
        first = [f"first: {', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''}"]
        return [
            one_line(f"{self.data}: {share}{self.text}"),
            *(
                one_line(line)
                for line in ([f"-> {self.mend}"] if self.mend else []) + first * bool(self.examples)
            ),
        ]


def finding(
    level: str,
    kind: str,
    data: str,
    text: str,
    mend: str,
    examples: Sequence[str] = (),
    count: int | None = None,
    total: int = 1,
    what: str = "annotations",
) -> Finding:
    """A `Finding`; `count` is by default the number of examples, of which the first `MOST` are kept."""
    count = len(examples) if count is None else count
    return Finding(level, kind, data, text, mend, count, total, what, tuple(examples[:MOST]))


@dataclass
class Report:
    """What `survey` found out about one data set, or about one for training and one for validation.

    Attributes
    ----------
    findings : list of Finding
        The worst first.
    facts : dict
        By data set: numbers of images, objects and so on, ready for JSON.
    """

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings; all are kept in order of their levels."""
        self.findings += findings
        self.findings.sort(key=lambda finding: LEVELS.index(finding.level))

    @property
    def refused(self) -> bool:
        """Whether training would refuse the data."""
        return any(finding.level == REFUSED for finding in self.findings)

    def document(self) -> dict:
        """All of it for report.json."""
        return {"refused": self.refused, "data": self.facts, "findings": [asdict(f) for f in self.findings]}

    def table(self) -> str:
        """The facts and the findings as text."""
        lines = []
        for name, facts in self.facts.items():
            lines += [
                one_line(name),
                *(f"  {key:<9} {one_line(text)}" for key, text in facts["shown"].items()),
            ]
        counts = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        said = [
            f"{count} {level}{'s' * (level == NOTE and count > 1)}"
            for level, count in counts.items()
            if count
        ]
        lines += ["", ", ".join(said) + ":" if said else "nothing to mend"]
        for found in self.findings:
            first, *rest = found.lines()
            lines += [f"  {found.level:<8} {first}", *(f"           {line}" for line in rest)]
        return "\n".join(lines)
