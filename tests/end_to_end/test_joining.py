"""How machines become one mesh and part again, as people do it: real peers, and the commands they type."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.fixtures.house import House, alive, mesh, peer_address, states
from tests.fixtures.peer import Peer, until


def test_two_new_machines_join_by_the_door_and_find_each_other_again_after_a_restart(tmp_path: Path) -> None:
    """F7: start the program, nothing else to do. Row 21: with one address given where there is no multicast."""
    with House(tmp_path) as house:
        attic = house.start("attic")
        tower = house.start("tower", seed=attic)
        house.see_each_other(attic, tower)
        before = mesh(tower)["mesh_id"]
        assert "joined" in attic.stdout + tower.stdout and "by the open door" in attic.stdout + tower.stdout
        tower.stop()
        until(lambda: states(attic)["tower"] == "left", "the goodbye was heard")
        again = house.start("tower")  # without the seed: what it remembers is enough
        house.see_each_other(attic, again)
        assert mesh(again)["mesh_id"] == before


def test_who_asks_is_let_in_by_any_member_that_sees_the_same_digits(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        attic = house.start("attic")
        tower = house.start("tower", seed=attic)
        house.see_each_other(attic, tower)
        assert "shut" in attic.command("door", "close").stdout
        until(lambda: not mesh(tower)["door"]["open"], "the door is shut everywhere")
        cellar = house.start("cellar", seed=attic)
        until(lambda: mesh(cellar)["joining"] is not None, "it asks")
        digits = mesh(cellar)["joining"]["digits"]
        assert re.fullmatch(r"\d{3} \d{3}", digits) and digits in cellar.stdout
        until(lambda: mesh(tower)["joins_waiting"] == 1, "the other member knows")
        assert digits in tower.command("approve").stdout
        wrong = "000 000" if digits != "000 000" else "111 111"
        assert tower.command("approve", wrong).returncode == 5
        done = tower.command("approve", *digits.split())
        assert done.returncode == 0 and "cellar" in done.stdout
        house.see_each_other(attic, tower, cellar)
        assert mesh(attic)["joins_waiting"] == 0 and digits in attic.stdout


def test_who_is_denied_stays_out_and_is_told(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        attic = house.start("attic", env={"LLM_ROUTER_DOOR_MINUTES": "0"})
        cellar = house.start("cellar", seed=attic)
        until(lambda: mesh(attic)["joins_waiting"] == 1, "it asks")
        digits = mesh(cellar)["joining"]["digits"]
        assert attic.command("deny", digits).returncode == 0
        until(lambda: "did not join" in cellar.stdout, "it is told")
        assert alive(attic) == ["attic"] and alive(cellar) == ["cellar"]
        denied = cellar.command("join", peer_address(attic))
        assert denied.returncode != 0 and "denied" in denied.stderr


def test_a_line_from_invite_joins_one_machine_and_then_no_other(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        attic = house.start("attic", env={"LLM_ROUTER_DOOR_MINUTES": "0"})
        tower = house.start("tower", env={"LLM_ROUTER_DOOR_MINUTES": "0"})
        cellar = house.start("cellar", env={"LLM_ROUTER_DOOR_MINUTES": "0"})
        (line,) = attic.command("invite").stdout.strip().splitlines()
        assert line.startswith("llm-router join 'llmr1-") and line.endswith("'")
        token = line.removeprefix("llm-router join '").removesuffix("'")
        joined = tower.command("join", token)
        assert joined.returncode == 0 and "attic" in joined.stdout
        house.see_each_other(attic, tower)
        used = cellar.command("join", token)
        assert used.returncode != 0 and "invite" in used.stderr
        assert alive(cellar) == ["cellar"]
        secret = re.findall(r"-([A-Za-z0-9_-]{43})@", token)[0]
        for file in (tmp_path / "attic" / "data").rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def test_join_takes_the_address_of_the_api_too_and_says_when_nobody_is_there(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        attic = house.start("attic")
        tower = house.start("tower", env={"LLM_ROUTER_DOOR_MINUTES": "0"})
        nobody = tower.command("join", "127.0.0.1:9")
        assert nobody.returncode != 0 and "127.0.0.1:9" in nobody.stderr
        joined = tower.command("join", attic.url)
        assert joined.returncode == 0 and "attic" in joined.stdout
        house.see_each_other(attic, tower)


def test_a_token_in_the_environment_joins_at_the_start(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        attic = house.start("attic", env={"LLM_ROUTER_DOOR_MINUTES": "0"})
        token = re.findall(r"'(.*)'", attic.command("invite").stdout)[0]
        tower = house.start("tower", env={"LLM_ROUTER_JOIN": token})
        house.see_each_other(attic, tower)


def test_peers_of_one_user_on_one_machine_join_silently(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        shared = {"LLM_ROUTER_RUN_DIR": str(tmp_path / "run"), "LLM_ROUTER_DOOR_MINUTES": "0"}
        attic = house.start("attic", env=shared)
        tower = house.start("tower", env=shared)
        cellar = house.start("cellar", env=shared)
        house.see_each_other(attic, tower, cellar)


def test_a_revoked_machine_is_out_at_once_and_comes_back_only_as_a_new_one(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        attic = house.start("attic")
        tower = house.start("tower", seed=attic)
        house.see_each_other(attic, tower)
        founder, other = (attic, tower) if mesh(attic)["name"] == "attic" else (tower, attic)
        name = mesh(other)["self"]["name"]
        by_door = other.command("peers", "revoke", mesh(founder)["self"]["name"], "--yes")
        assert by_door.returncode != 0  # who came by the door cannot revoke
        assert founder.command("peers", "revoke", name, "--yes").returncode == 0
        until(lambda: name not in states(founder), "it is gone", 5.0)
        until(lambda: alive(other) == [name], "the other is alone", 10.0)
        assert "revoked" in other.stdout
        other.stop()
        assert other.command("identity", "reset", "--yes").returncode == 0
        again = house.start(name, seed=founder)
        house.see_each_other(founder, again)


def test_who_leaves_is_a_mesh_of_its_own_and_may_be_invited_again(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        attic = house.start("attic")
        tower = house.start("tower", seed=attic)
        house.see_each_other(attic, tower)
        assert tower.command("join", peer_address(attic)).returncode != 0
        assert tower.command("leave", "--yes").returncode == 0
        until(lambda: alive(tower) == ["tower"], "alone")
        until(lambda: states(attic).get("tower") in ("left", None), "the others know")
        token = re.findall(r"'(.*)'", attic.command("invite").stdout)[0]
        assert tower.command("join", token).returncode == 0
        house.see_each_other(attic, tower)


def test_a_copied_data_folder_is_told_and_stops(tmp_path: Path) -> None:
    """Row 21: the clone is named and stopped, the first one goes on."""
    with House(tmp_path) as house:
        attic = house.start("attic")
        tower = house.start("tower", seed=attic)
        house.see_each_other(attic, tower)
        shutil.copytree(tmp_path / "tower" / "data", tmp_path / "copy" / "data")
        for name in ("lock", "control.json"):
            (tmp_path / "copy" / "data" / name).unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "copy" / "data" / "run", ignore_errors=True)
        copy = Peer.spawned(
            tmp_path / "copy" / "data",
            env={
                "LLM_NODE_BIND_ADDRESS": "127.0.0.1",
                "LLM_NODE_IP": "127.0.0.1",
                "LLM_ROUTER_URL": peer_address(attic),
            },
        )
        assert copy.process.wait(30) == 1
        assert "same identity" in copy.stderr and "identity reset" in copy.stderr
        house.see_each_other(attic, tower)
