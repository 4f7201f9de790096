"""The mesh as the history needs to see it, read from gossip. Decides nothing: that is mesh.history.replicas'."""

from __future__ import annotations

from collections.abc import Callable

from gossip.agent import Agent
from gossip.member import MemberView
from mesh.history.replicas import Mate, View


def view_of(agent: Agent, clock: Callable[[], float], now_ms: Callable[[], int]) -> View:
    """What this peer believes now. `clock` is the one that gossip runs on (the loop's)."""
    claim = agent.coordinator
    now, wall_ms = clock(), now_ms()
    return View(
        me=agent.me,
        is_guest=not agent.roster.is_signer(agent.me),
        is_eligible=agent.about.eligibility > 0,
        mates={view.peer: _mate(view, now, wall_ms) for view in agent.members()},
        coordinator=claim.peer if claim is not None else None,
        succession=tuple(agent.succession()),
    )


def _mate(view: MemberView, now: float, wall_ms: int) -> Mate:
    is_alive = view.state in ("alive", "suspect")
    is_known = not is_alive and view.state != "unknown"
    return Mate(
        peer=view.peer,
        is_alive=is_alive,
        is_guest=view.role == "guest",
        is_eligible=view.about.eligibility > 0,
        has_left=view.state == "left",
        since_ms=wall_ms - round((now - view.since) * 1000) if is_known else None,
        run=view.run,
    )
