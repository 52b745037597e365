"""What is over is forgotten: nothing grows with the number of tasks that were here."""

from __future__ import annotations

from pathlib import Path

from geres.agent.access import Access
from geres.agent.accounts import Accounts, own_account
from geres.agent.capture import Captures
from geres.agent.cgroups import MemoryGroups
from geres.agent.folders import Folders
from geres.agent.journal import Journal
from geres.agent.link import Link
from geres.agent.local import Localities
from geres.agent.node import Node
from geres.agent.orders import Orders, Place
from geres.agent.running import Running
from geres.agent.starting import Starter
from geres.agent.upkeep import Upkeep
from geres.agent.upload import Uploader
from geres.config import AgentConfig
from geres.model.wire import Frame

KEY = (1 << 32 | 1, 1)
END = (*KEY, "exited", 0, None, None, None, 1, 2, None, (2, b"x\n", None), (0, b"", None), None, None)


def node_at(folder: Path) -> Node:
    """A node whose orders go nowhere."""
    link = Link(folder, folder / "log", lambda frame: None, lambda: None)
    place = Place("n1", "http://127.0.0.1:1", folder, folder)
    node = Node(
        Orders(AgentConfig(), place, Localities(), Accounts({"*": own_account().name}), link.send),
        Uploader(Access(place.url, "")),
        Upkeep(folder, link.path),
    )
    node.link = link
    node.hear(("list", 1, "boot", [], [(*KEY, 7, 1, 0)], []))
    return node


async def test_an_attempt_that_is_followed_no_more_is_forgotten(tmp_path: Path) -> None:
    node = node_at(tmp_path)
    first, second = node.follow(KEY), node.follow(KEY)
    node.unfollow(KEY)
    node.hear(("report", [], [END]))
    assert second.end is not None, "another one still follows it"
    assert first is second
    node.unfollow(KEY)
    assert not node._following


async def test_an_attempt_that_nobody_follows_to_its_end_is_forgotten(tmp_path: Path) -> None:
    node = node_at(tmp_path)
    node.follow(KEY)
    node.unfollow(KEY)

    node.hear(("report", [], [END]))

    assert not node._following


async def test_input_is_not_counted_for_what_is_over(tmp_path: Path) -> None:
    node = node_at(tmp_path)
    node.hear(("stdin", KEY, 5))
    assert node.stdin_given == {KEY: 5}

    node.hear(("report", [], [END]))
    node.hear(("stdin", KEY, -1))
    node.obey(Frame(ack=[KEY]))
    node.hear(("stdin", KEY, -1))

    assert not node.stdin_given


def test_ends_that_are_killed_hold_no_output(tmp_path: Path) -> None:
    starter = Starter(Folders(str(tmp_path / "tasks")), Captures(str(tmp_path)), MemoryGroups())
    running = Running(starter, Journal(str(tmp_path / "journal"), "boot"))
    running._keep_end(END)
    assert running._held_bytes == 2

    running.kill_silently([KEY])

    assert running._held_bytes == 0
    assert not running.ended
