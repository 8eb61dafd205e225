import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from structlog.contextvars import bound_contextvars, get_contextvars

from app.core.config import DatabaseSettings
from app.core.db.database import Database
from app.core.db.failures import DatabaseUnavailableError
from app.core.db.timeouts import current_statement_timeout, statement_timeout
from app.core.notifications import broadcasts
from app.core.notifications.broadcasts import MAX_SIZE, MAX_WAITING, Broadcasts, Subscription, publish
from app.core.shutdown import Shutdown
from tests.conftest import cloned, make_settings
from tests.proxy import proxied


@pytest.fixture(scope="module")
async def shared_url(template_url: str) -> AsyncIterator[str]:
    async with cloned(template_url) as url:
        yield url


@pytest.fixture
async def database(shared_url: str) -> AsyncIterator[Database]:
    database = Database(make_settings(shared_url).database)
    yield database
    await database.dispose()


def settings_of(url: str) -> DatabaseSettings:
    return make_settings(url, database={"connect_timeout": "1s"}).database


async def test_a_message_arrives_exactly_if_its_transaction_commits(shared_url: str, database: Database) -> None:
    async with (
        Broadcasts(settings_of(shared_url), Shutdown()).running() as messages,
        messages.subscribe("a") as subscription,
    ):
        async with database.sessions() as session:
            await publish(session, "a", "withdrawn")
            await session.rollback()
        async with database.begin() as session:
            await publish(session, "b", "another topic")
            await publish(session, "a", "first\nsecond: ü")
            await publish(session, "a", "")

        assert [await anext(subscription), await anext(subscription)] == ["first\nsecond: ü", ""]


@pytest.mark.parametrize(
    ("topic", "message"), [("", "x"), ("a\nb", "x"), ("a", "x" * MAX_SIZE), ("a", "ü" * (MAX_SIZE // 2))]
)
async def test_a_message_that_cannot_be_delivered_is_refused(database: Database, topic: str, message: str) -> None:
    async with database.sessions() as session:
        with pytest.raises(ValueError, match="at most 7998 bytes"):
            await publish(session, topic, message)


async def test_the_longest_message_is_delivered(shared_url: str, database: Database) -> None:
    longest = "x" * (MAX_SIZE - 2)
    async with (
        Broadcasts(settings_of(shared_url), Shutdown()).running() as messages,
        messages.subscribe("a") as subscription,
    ):
        async with database.begin() as session:
            await publish(session, "a", longest)

        assert await anext(subscription) == longest


async def test_a_shutdown_ends_the_subscriptions_and_the_later_ones(shared_url: str) -> None:
    shutdown = Shutdown()
    async with Broadcasts(settings_of(shared_url), shutdown).running() as messages:
        async with messages.subscribe("a") as before:
            shutdown.begin()
            assert [message async for message in before] == []
        async with messages.subscribe("a") as after:
            assert [message async for message in after] == []

    assert (before.ended, after.ended) == ("shutdown", "shutdown")


async def test_a_slow_subscription_ends_after_the_messages_that_it_holds() -> None:
    subscription = Subscription()

    for number in range(MAX_WAITING + 2):
        subscription.deliver(str(number))

    assert subscription.ended == "slow"
    assert [message async for message in subscription] == [str(number) for number in range(MAX_WAITING)]


async def test_an_unreachable_database_refuses_subscriptions_and_then_accepts_them(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcasts, "_MAX_RETRY", 0.1)
    async with proxied(shared_url) as proxy, Broadcasts(settings_of(proxy.url), Shutdown()).running() as messages:
        proxy.cut()
        with pytest.raises(DatabaseUnavailableError):
            async with messages.subscribe("a"):
                pytest.fail("it has subscribed")

        proxy.accept()
        async with messages.subscribe("a") as subscription:
            assert subscription.ended is None


async def test_the_connection_does_not_belong_to_the_request_that_opened_it(shared_url: str) -> None:
    with bound_contextvars(request_id="of-the-first-subscriber"), statement_timeout(timedelta(minutes=1)):
        async with Broadcasts(settings_of(shared_url), Shutdown()).running() as messages, messages.subscribe("a"):
            [task] = [task for task in asyncio.all_tasks() if task.get_name() == "broadcasts"]

            assert task.get_context().run(get_contextvars) == {}
            assert task.get_context().run(current_statement_timeout) is None


async def test_a_server_that_stops_responding_ends_the_subscriptions(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEARTBEAT_INTERVAL", "_COMMAND_TIMEOUT"):
        monkeypatch.setattr(broadcasts, name, 0.3)
    async with (
        proxied(shared_url) as proxy,
        Broadcasts(settings_of(proxy.url), Shutdown()).running() as messages,
        messages.subscribe("a") as subscription,
    ):
        proxy.stall()

        async with asyncio.timeout(10):
            assert [message async for message in subscription] == []

        assert subscription.ended == "lost"


async def test_an_address_without_notifications_is_logged(
    shared_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broadcasts, "_COMMAND_TIMEOUT", 0.3)
    async with (
        proxied(shared_url, swallows_notifications=True) as proxy,
        Broadcasts(settings_of(proxy.url), Shutdown()).running() as messages,
    ):
        with caplog.at_level(logging.WARNING), pytest.raises(DatabaseUnavailableError):
            async with messages.subscribe("a"):
                pytest.fail("it has subscribed")

    reasons = [record.__dict__["reason"] for record in caplog.records if record.msg == "no connection for messages"]
    assert any("set APP_DATABASE__DIRECT_URL" in reason for reason in reasons)
