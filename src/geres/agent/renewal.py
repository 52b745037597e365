"""What an agent does with itself while its tasks go on: reads its settings again, begins anew."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from geres import log_setup
from geres.agent.channel import Channel
from geres.agent.machine import node_name
from geres.agent.orders import Orders
from geres.config import AgentConfig, Config
from geres.errors import GeresError

log = logging.getLogger("geres.agent")

READ = "the agent read its settings again"
NOT_READ = "the agent keeps its settings"
ANEW = "the agent began anew"
_ANEW_VARIABLE = "GERES_AGENT_ANEW"


class Renewal:
    """Obeys what operators ask of the agent itself, by a signal or through a server."""

    def __init__(
        self,
        config: AgentConfig,
        read: Callable[[], Config],
        log_file: Path,
        orders: Orders,
        channel: Channel,
        begin_anew: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        """`read` gives the settings as they are now; `note` keeps the outcome for who sent a signal."""
        self._config, self._read, self._log_file = config, read, log_file
        self._orders, self._channel = orders, channel
        self._begin_anew, self._note = begin_anew, note

    def obey(self, wish: str) -> None:
        """`reload` or `restart`; another word is of a newer server and passed over."""
        if wish == "reload":
            self.reload()
        elif wish == "restart":
            os.environ[_ANEW_VARIABLE] = "1"
            self._begin_anew()

    def reload(self) -> None:
        """Take over the settings as they are now, with a new connection that tells the server of them.

        Tasks that run keep what they were started with.  Settings that cannot be are refused as a whole.
        """
        try:
            config = self._read()
            agent = self._fitted(config)
        except GeresError as error:
            notice = f"{NOT_READ}: {error}"
            log.error("%s", notice)
        else:
            log_setup.set_up(config.log)
            log_setup.keep(self._log_file)
            self._config, notice = agent, READ
            self._orders.reconfigure(agent)
            log.info("%s", notice)
        self._channel.renew(self._config, notice)
        self._note(notice)

    def _fitted(self, config: Config) -> AgentConfig:
        """The agent's part, with the name and pool that it joined with where the settings name none."""
        now = self._config
        pool = config.agent.pool if "agent.pool" in config.origins else now.pool
        agent = replace(config.agent, name=config.agent.name or now.name, pool=pool)
        if node_name(agent) != node_name(now):
            raise GeresError(
                f"agent.name: {node_name(now)} cannot become {node_name(agent)} while it works; stop it first"
            )
        return agent


def notice_of_start() -> str:
    """What to tell the server where this process has just begun anew because somebody asked for it."""
    return ANEW if os.environ.pop(_ANEW_VARIABLE, "") else ""
