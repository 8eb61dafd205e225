import pytest

from app.core.addresses import ip_prefix


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("::1", "::/48"),
    ],
)
def test_an_address_is_shortened_to_its_network(address: str, prefix: str) -> None:
    assert str(ip_prefix(address)) == prefix


@pytest.mark.parametrize("address", [None, "", "testclient", "192.0.2", "192.0.2.1:80", "[::1]"])
def test_what_is_no_address_has_no_network(address: str | None) -> None:
    assert ip_prefix(address) is None
