"""Where the agent's server is, whom it takes it for, and what it shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Access:
    url: str
    token: str
    fingerprint: str = ""  #: of the one certificate that is good; empty: the machine's authorities decide

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}
