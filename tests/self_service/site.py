"""The pages in a browser: a running application, a tab, and accounts to log in to."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from httpx2 import AsyncClient
from sqlalchemy import text

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.auth.login_sessions import start
from tests.auth.post import Post, link_in
from tests.conftest import make_settings
from tests.core.browser import Page, browsing
from tests.factories import PASSWORD, make_user
from tests.servers import Server, real_server

SECURITY = "location.pathname.endsWith('/account/security')"
READY = "document.readyState === 'complete'"
LOADED = "document.querySelector('#page')?.ariaBusy === null && !document.querySelector('#content').hidden"
LOGIN = f"location.pathname.endsWith('/account/login') && {READY}"
FOCUS = "document.activeElement.id || document.activeElement.textContent"


@dataclass
class Site:
    """A running application with its pages, and a browser."""

    server: Server
    database: Database
    hasher: PasswordHasher
    page: Page
    post: Post
    url: str = field(init=False)

    def __post_init__(self) -> None:
        """Set the URL of the pages."""
        self.url = f"{self.server.base_url}/account/"

    async def add_account(self, **values: object) -> str:
        """Add an account with the password of all tests, and return its address."""
        async with self.database.begin() as session:
            user = await make_user(session, self.hasher, **values)
        return user.email

    async def count(self, query: str, **values: object) -> int:
        """Return the number that a query counts."""
        async with self.database.read_sessions() as session:
            return int(await session.scalar(text(query), values) or 0)

    async def execute(self, statement: str, **values: object) -> None:
        """Change the database as the passing of time or another process would."""
        async with self.database.begin() as session:
            await session.execute(text(statement), values)

    async def log_in_elsewhere(self, email: str, *user_agents: str) -> None:
        """Start a login session from each of these devices."""
        async with AsyncClient(base_url=self.server.base_url) as client:
            for user_agent in user_agents:
                await start(client, email, user_agent=user_agent)

    async def open(self, name: str, page: Page | None = None) -> None:
        """Open one of the pages, and wait for its scripts."""
        page = page or self.page
        await page.run("window.isLeft = true")
        await page.open(self.url + name)
        await page.wait_for(f"!window.isLeft && {READY}")

    async def log_in(self, email: str, password: str = PASSWORD, page: Page | None = None) -> None:
        """Log in with the form, and wait for the security page."""
        page = page or self.page
        await self.open("login", page)
        await page.fill("#username", email)
        await page.fill("#password", password)
        await page.click("#first button")
        await page.wait_for(LOADED)

    async def link_to(self, email: str) -> str:
        """Return the link that has been mailed to an address."""
        (mail,) = [mail for mail in await self.post.collect() if mail.to == email and "#token=" in mail.text]
        return link_in(mail)

    @asynccontextmanager
    async def answering(self, path: str, status: int, document: object, body: str = "") -> AsyncIterator[None]:
        """Answer requests for a path of the API in the browser, as a service does that is configured in another way.

        Requests whose body does not contain `body` go to the service.
        """
        script = f"""const real = fetch;
            const isAnswered = (url, options) =>
                new URL(url).pathname.endsWith({json.dumps(path)}) && String(options.body ?? "").includes({json.dumps(body)});
            window.fetch = async (url, options) => isAnswered(url, options)
                ? new Response({json.dumps(json.dumps(document))}, {{status: {status}}}) : real(url, options);"""
        added = await self.page.send("Page.addScriptToEvaluateOnNewDocument", source=script)
        yield
        await self.page.send("Page.removeScriptToEvaluateOnNewDocument", **added)

    async def forget(self) -> None:
        """Leave the pages, and delete all cookies."""
        await self.page.open("about:blank")
        await self.page.send("Network.clearBrowserCookies")


@asynccontextmanager
async def opened(database_url: str, hasher: PasswordHasher, directory: Path, **settings: str) -> AsyncIterator[Site]:
    """Run the application and a browser."""
    app_settings = make_settings(database_url)
    database = Database(app_settings.database)
    try:
        async with real_server(database_url, **settings) as server, browsing(directory) as page:
            yield Site(server, database, hasher, page, Post(database, app_settings))
    finally:
        await database.dispose()
