from ipaddress import ip_network
from typing import Any

import pytest

from app.core.http import addresses
from app.core.http.addresses import ClientAddresses, Network, client_address, ip_prefix, subscriber

PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8:aaaa::/48")]


@pytest.mark.parametrize("header", ["", "1.2.3.4", "127.0.0.1", "10.0.0.1", "1.2.3.4, 10.0.0.2", "garbage", "::1"])
@pytest.mark.parametrize("peer", ["192.0.2.7", "11.0.0.1", "2001:db8:bbbb::1"])
def test_a_header_from_an_untrusted_peer_is_ignored(peer: str, header: str) -> None:
    assert client_address(peer, header, PROXIES) == peer


def test_without_trusted_proxies_the_header_is_ignored() -> None:
    assert client_address("10.0.0.1", "1.2.3.4", []) == "10.0.0.1"


@pytest.mark.parametrize(
    ("header", "address"),
    [
        pytest.param("", "10.0.0.1", id="none"),
        pytest.param("192.0.2.7", "192.0.2.7", id="one"),
        pytest.param("192.0.2.7, 10.0.0.2", "192.0.2.7", id="a chain of proxies"),
        pytest.param("192.0.2.7,10.0.0.3 ,\t10.0.0.2", "192.0.2.7", id="a longer chain with spaces"),
        pytest.param("9.9.9.9, 192.0.2.7", "192.0.2.7", id="an entry written by the client"),
        pytest.param("10.0.0.9, 192.0.2.7, 10.0.0.2", "192.0.2.7", id="a trusted address written by the client"),
        pytest.param("10.0.0.3, 10.0.0.2", "10.0.0.3", id="only proxies"),
        pytest.param("2001:DB8::7", "2001:db8::7", id="IPv6"),
        pytest.param("192.0.2.7, 2001:db8:aaaa::2", "192.0.2.7", id="an IPv6 proxy"),
        pytest.param("::ffff:192.0.2.7", "192.0.2.7", id="IPv4 in IPv6"),
        pytest.param("192.0.2.7:51234", "192.0.2.7", id="with a port"),
        pytest.param("[2001:db8::7]:443", "2001:db8::7", id="IPv6 with a port"),
        pytest.param("[2001:db8::7]", "2001:db8::7", id="IPv6 in brackets"),
        pytest.param("fe80::1%eth0", "fe80::1", id="with a zone"),
        pytest.param("garbage", "10.0.0.1", id="garbage"),
        pytest.param("9.9.9.9, garbage", "10.0.0.1", id="garbage after an address"),
        pytest.param("9.9.9.9, garbage, 10.0.0.2", "10.0.0.2", id="garbage behind a proxy"),
        pytest.param("9.9.9.9,", "10.0.0.1", id="an empty member"),
        pytest.param("999.1.1.1", "10.0.0.1", id="out of range"),
        pytest.param("192.0.2.7:99999999", "10.0.0.1", id="an invalid port"),
        pytest.param("unknown", "10.0.0.1", id="the word unknown"),
        pytest.param("192.0.2.7\x00", "10.0.0.1", id="a NUL"),
        pytest.param("\u0661\u0669\u0662.\u0660.\u0662.\u0667", "10.0.0.1", id="digits that are not ASCII"),
    ],
)
def test_behind_proxies_the_client_is_the_last_untrusted_address(header: str, address: str) -> None:
    assert client_address("10.0.0.1", header, PROXIES) == address


def test_an_ipv4_proxy_on_a_dual_stack_socket_is_trusted() -> None:
    assert client_address("::ffff:10.0.0.1", "192.0.2.7", PROXIES) == "192.0.2.7"


@pytest.mark.parametrize("peer", [None, "", "testclient", "unix:"])
def test_a_peer_without_an_address_stays_without_one(peer: str | None) -> None:
    assert client_address(peer, "192.0.2.7", PROXIES) is None


def test_a_header_with_thousands_of_entries_is_read_from_its_end() -> None:
    header = ",".join(["garbage"] * 5000 + ["192.0.2.7"])

    assert client_address("10.0.0.1", header, PROXIES) == "192.0.2.7"


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("fe80::1%eth0", "fe80::/48"),
    ],
)
def test_only_the_network_of_an_address_is_stored(address: str, prefix: str) -> None:
    assert ip_prefix(address) == ip_network(prefix)


@pytest.mark.parametrize("address", [None, "", "testclient"])
def test_without_an_address_nothing_is_stored(address: str | None) -> None:
    assert ip_prefix(address) is None


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        (None, None, True),
        (None, "192.0.2.7", False),
    ],
)
def test_a_subscriber_is_an_ipv4_address_or_an_ipv6_network(one: str | None, other: str | None, is_same: bool) -> None:
    assert (subscriber(one) == subscriber(other)) is is_same


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    "headers",
    [{"x_forwarded_for": "192.0.2.7", "forwarded": None}, {"x_forwarded_for": "", "forwarded": "for=192.0.2.7"}],
)
@pytest.mark.parametrize("trusted", [[], PROXIES])
def test_an_untrusted_proxy_is_logged_once_an_hour(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, trusted: list[Network], headers: dict[str, Any]
) -> None:
    now = 1000.0
    monkeypatch.setattr(addresses, "monotonic", lambda: now)
    found = ClientAddresses(trusted)

    assert [found.find(peer, **headers) for peer in ("172.17.0.1", "172.17.0.2")] == ["172.17.0.1", "172.17.0.2"]
    first = warnings(caplog)
    now += 3601
    found.find("172.17.0.3", **headers)

    assert len(first) == 1
    assert "APP_SERVER__TRUSTED_PROXIES" in first[0]
    assert "172.17.0.1" in first[0]
    assert "192.0.2.7" not in caplog.text
    assert len(warnings(caplog)) == 2
    assert "172.17.0.3" in warnings(caplog)[1]


def test_a_forwarding_peer_without_an_address_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert ClientAddresses([]).find(None, x_forwarded_for="192.0.2.7", forwarded=None) is None

    assert "an unknown address" in caplog.text


def test_a_trusted_proxy_and_a_direct_client_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    found = ClientAddresses(PROXIES)

    assert found.find("10.0.0.1", x_forwarded_for="192.0.2.7", forwarded="for=192.0.2.7") == "192.0.2.7"
    assert found.find("172.17.0.1", x_forwarded_for="", forwarded=None) == "172.17.0.1"
    assert warnings(caplog) == []


def test_at_most_32_proxies_are_skipped() -> None:
    trusted = [ip_network("10.0.0.0/8")]
    proxies = [f"10.0.{number}.1" for number in range(40)]

    address, skipped = [
        client_address("10.1.0.1", ",".join(["192.0.2.7", *some]), trusted) for some in (proxies[:31], proxies)
    ]

    assert address == "192.0.2.7"
    assert skipped == proxies[8]
