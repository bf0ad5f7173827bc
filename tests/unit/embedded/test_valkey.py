from __future__ import annotations

import stat
from pathlib import Path

import pytest
from redis import Redis

from oxherd.embedded.valkey import Valkey


@pytest.mark.parametrize("tcp", [False, True], ids=["socket", "tcp"])
def test_data_survives_a_kill_at_the_same_address(tcp):
    with Valkey(tcp=tcp, append_only=True, config={"appendfsync": "always"}) as server:
        address = server.url
        with Redis.from_url(address) as client:
            client.set("kept", "yes")
        server.kill()
        server.start()
        assert server.url == address
        with Redis.from_url(address) as client:
            assert client.get("kept") == b"yes"


def test_data_in_a_named_folder_survives_a_stop(tmp_path):
    for expected in (None, b"yes"):
        with Valkey(tmp_path, append_only=True) as server, Redis.from_url(server.url) as client:
            assert client.set("kept", "yes", get=True) == expected


def test_without_append_only_a_restart_is_empty(tmp_path):
    for _ in range(2):
        with Valkey(tmp_path) as server, Redis.from_url(server.url) as client:
            assert client.set("kept", "yes", get=True) is None


def test_a_socket_is_private_and_no_port_is_open():
    with Valkey() as server, Redis.from_url(server.url) as client:
        path = Path(server.url.removeprefix("unix://"))
        assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_port_is_open_on_loopback_only():
    with Valkey(tcp=True) as server, Redis.from_url(server.url) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_no_key_is_ever_evicted_and_settings_can_be_given():
    with Valkey(config={"maxmemory": "64mb"}) as server, Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024 * 1024)}


def test_clearing_it_forgets_all_data_and_all_scripts(valkey):
    with Redis.from_url(valkey.url) as client:
        client.set("name", "ox")
        sha = client.script_load("return 1")
        valkey.clear()
        assert client.dbsize() == 0
        assert client.script_exists(sha) == [False]
