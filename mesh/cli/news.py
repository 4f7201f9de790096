"""What a running peer tells a person of its mesh, a line or two each: printed by `up`, logged, the same words in both.

Pure texts from values. Names and reasons come from other machines: they are made harmless here.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.cli.output import count, duration, harmless


def alone(door_s: float) -> str:
    """At the start of a peer that is in no mesh with others yet. `door_s`: how long its door is open; 0: it is shut."""
    if door_s <= 0:
        return (
            "no other machine yet, and the door is shut: a new machine asks, llm-router approve lets it in\n"
            "llm-router door open lets those of this network in by themselves"
        )
    return (
        f"no other machine yet; the door is open for another {duration(door_s)} (llm-router door close shuts it)\n"
        "start llm-router on other machines of this network, they join by themselves"
    )


def together(mesh: str, members: int) -> str:
    """At the start of a peer that comes back to its mesh."""
    return harmless(f"{mesh}, {count(members, 'machine')}: llm-router peers")


def found(mesh: str, members: int, digits: str) -> str:
    """This peer asks to join."""
    what = f"Found mesh {mesh} ({count(members, 'machine')}). Asking to join: {digits}"
    return harmless(f"{what}\nif one of them shows the same digits, say there: llm-router approve {digits}")


def joined(mesh: str, members: int) -> str:
    """This peer is in."""
    return harmless(f"joined mesh {mesh}, {count(members, 'machine')}: llm-router peers")


def not_joined(mesh: str, reason: str) -> str:
    """This peer is not in: it was denied, nobody answered, or it failed."""
    return harmless(f"did not join mesh {mesh}: {reason}")


def asked(name: str, digits: str, address: str) -> str:
    """Another machine asks this mesh."""
    return harmless(
        f"{name} ({address}) asks to join: {digits}\n"
        f"if it shows the same digits: llm-router approve {digits}, else llm-router deny {digits}"
    )


def admitted(name: str, short_id: str, via: str) -> str:
    """A machine came in: `via` is one of door, ask, token, local, trusted."""
    how = {
        "door": "by the open door",
        "ask": "after approval",
        "token": "by invitation",
        "local": "from the same machine",
    }.get(via, "")
    undo = f"to put it out again: llm-router peers revoke {short_id}"
    return harmless(f"{name} ({short_id}) joined{' ' + how if how else ''}; {undo}")


def guests(names: Sequence[str]) -> str:
    """Those that nobody has trusted yet."""
    return harmless(f"guests: {', '.join(names)}; if yours: llm-router peers trust NAME")


def coordinator(name: str, term: int, *, is_this: bool) -> str:
    """Who owns history and admin state now."""
    return harmless(f"{'this machine' if is_this else name} coordinates the mesh (term {term})")


def lost(name: str) -> str:
    """A member is dead: its requests go on elsewhere."""
    return harmless(f"{name} does not answer any more; its requests go to other machines")


def back(name: str) -> str:
    """A member that was lost answers again."""
    return harmless(f"{name} is back")


def left(name: str) -> str:
    """A member left on purpose."""
    return harmless(f"{name} has left the mesh")


def this_was_revoked(mesh: str, by: str) -> str:
    """This peer was put out of the mesh."""
    return harmless(
        f"this machine was revoked from mesh {mesh} by {by}: it serves itself only\n"
        "to join again as a new machine: llm-router down, llm-router identity reset, llm-router"
    )


def same_identity(address: str) -> str:
    """Two machines with one identity, this one started later."""
    return harmless(
        f"the machine at {address} has the same identity as this one: the data folder is a copy. "
        "This one stops serving\n"
        "to make it a machine of its own: llm-router down, llm-router identity reset, llm-router"
    )


def wrong_version(name: str, theirs: str, ours: str) -> str:
    """Two members that have no wire version in common."""
    return harmless(
        f"{name} runs {theirs} and this machine {ours}, which do not understand each other: update the older"
    )


def first_key(key: str) -> str:
    """Once in a mesh: it is stored hashed, so nobody can show it again."""
    return f"The first API key of this mesh, shown only now: {key}"


def set_up(link: str) -> str:
    """As long as the mesh has no administrator."""
    return f"To make the administrator of this mesh, open {link}"
