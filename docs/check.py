"""Check the built site: it asks nothing of a network, and its search finds every message.

python -m docs.check build/site
"""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from docs.messages import HOLE, messages

ELSEWHERE = re.compile(r"^(https?:)?//")
IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")
LOADED_BY_LINK = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}
"""What a browser fetches, or connects for, without being asked; other links are for readers."""


class Loaded(HTMLParser):
    """What a page has a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element loads."""
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and not LOADED_BY_LINK & set(given.get("rel", "").split()):
            return
        names = (
            ("href",) if tag == "link" else () if tag in {"a", "area", "base"} else ("src", "srcset", "data", "poster")
        )
        self.addresses += [given[name] for name in names if name in given]


def from_elsewhere(site: Path) -> list[str]:
    """Return what the site's pages and styles load from other machines, with the file that does."""
    found = []
    for page in sorted(site.rglob("*.html")):
        loaded = Loaded()
        text = page.read_text(encoding="utf-8")
        loaded.feed(text)
        found += [f"{page.relative_to(site)}: {one}" for one in loaded.addresses if ELSEWHERE.match(one.strip())]
        for style in re.findall(r"<style.*?</style>", text, re.DOTALL):
            found += [f"{page.relative_to(site)}: {one}" for one in IN_STYLES.findall(style)]
    for style in sorted(site.rglob("*.css")):
        found += [f"{style.relative_to(site)}: {one}" for one in IN_STYLES.findall(style.read_text(encoding="utf-8"))]
    return found


def not_found_by_search(site: Path) -> list[str]:
    """Return the messages whose text is not in the search index."""
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    text = _flat(" ".join(unescape(re.sub(r"<[^>]+>", "", entry["text"])) for entry in index["docs"]))
    return [
        f"{message.module}:{message.line}: {message.text}"
        for message in messages()
        if not all(_flat(part) in text for part in message.text.split(HOLE))
    ]


def _flat(text: str) -> str:
    return "".join(text.split())


def main() -> int:
    """Print what is wrong with a built site; return 1 if anything is."""
    site = Path(sys.argv[1])
    problems = [f"loaded from elsewhere: {one}" for one in from_elsewhere(site)]
    problems += [f"not found by search: {one}" for one in not_found_by_search(site)]
    sys.stdout.writelines(f"{problem}\n" for problem in problems)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
