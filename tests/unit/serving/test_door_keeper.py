"""What the stand-in serves by, and which configurations of Ray's are worth keeping."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.system.door_keeper import stand_in_config
from serving.system.haproxy_launcher import LAST_NAME, keep_or_replace, leads_somewhere

EMPTY = """global
    stats socket /run/a mode 666 level admin expose-fd listeners
    stats timeout 30s
    server-state-base /run
    server-state-file {state}
defaults
    mode http
    load-server-state-from-file global
frontend prometheus
    bind 127.0.0.1:9101
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 503 default-errorfiles
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
listen stats
  bind 127.0.0.1:8404
"""
FULL = EMPTY.replace("frontend grpc_frontend", "backend http-vireo\n    server a 127.0.0.1:1\nfrontend grpc_frontend")


def test_stand_in_opens_the_two_doors_and_nothing_else() -> None:
    text = stand_in_config(FULL, Path("/run/s"))
    assert [line.split()[1] for line in text.splitlines() if " bind " in line] == ["127.0.0.1:8000", "127.0.0.1:9000"]
    assert [line.split()[2] for line in text.splitlines() if "stats socket" in line] == ["/run/s"]
    assert "level user" in text, "it is for handing sockets over, not for administration"
    assert "server-state" not in text
    assert "server a 127.0.0.1:1" in text


@pytest.mark.parametrize(("text", "leads"), [(EMPTY, False), (FULL, True)])
def test_configuration_with_a_gateway_leads_somewhere(text: str, leads: bool) -> None:
    assert leads_somewhere(text) is leads


def test_first_configuration_of_a_new_actor_gives_way_to_the_last_good_one(tmp_path: Path) -> None:
    path, last, state = tmp_path / "haproxy.cfg", tmp_path / LAST_NAME, tmp_path / "state"
    empty, full = EMPTY.format(state=state), FULL.format(state=state)

    path.write_text(empty)
    keep_or_replace(str(path), is_first=True)
    assert path.read_text() == empty, "there is no better one"

    path.write_text(full)
    state.write_text("of servers")
    keep_or_replace(str(path), is_first=False)
    assert last.read_text() == full
    assert state.exists()

    path.write_text(empty)
    keep_or_replace(str(path), is_first=False)
    assert path.read_text() == empty, "an actor that knows of the gateways says that there are none"

    keep_or_replace(str(path), is_first=True)
    assert path.read_text() == full
    assert not state.exists()
