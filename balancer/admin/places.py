"""The places of open status pages. No I/O.

* With a token set, KEPT places are for those who send it, so that no crowd without it locks operators out.
* A client's address has a share of the places that need no token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from balancer.admin.auth import TOKEN, TOKEN_NEEDED, Denial, has_token
from balancer.admin.subscriber import Subscriber
from balancer.config.settings import Settings
from balancer.words import counted

# Pages that may be open at a time; those of them that take the token, where one is set.
MAX_PAGES = 200
KEPT = 32
# Pages of one address without the token: a quarter, as of the connections.
SHARE = 50


def deny_page(
    settings: Settings, pages: Collection[Subscriber], client: str, headers: Mapping[str, str]
) -> Denial | None:
    """Return the refusal of one more page, or None. ``headers``: by name in lower case."""
    if len(pages) >= MAX_PAGES:
        return _full(counted(MAX_PAGES, "page"))
    if has_token(settings, headers):
        return None
    if settings.admin_token and "authorization" in headers:
        return TOKEN_NEEDED
    anonymous = [page.client for page in pages if page.client is not None]
    if settings.admin_token and len(anonymous) >= MAX_PAGES - KEPT:
        words = f"{len(anonymous)} pages without the value of {TOKEN} are open already; with it there are places left"
        return Denial(503, "pages_need_token", words)
    if anonymous.count(client) >= SHARE:
        return _full(f"{counted(SHARE, 'page')} of your address")
    return None


def _full(words: str) -> Denial:
    return Denial(503, "too_many_pages", f"{words} are open already")
