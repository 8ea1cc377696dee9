"""What mkdocs does not do by itself: the repository's own pages, links to its files, and a check of every link.

``README.md``, ``CHANGELOG.md`` and ``CONTRIBUTING.md`` become pages; a file that a page links to lies in ``files/`` of
the site. The documents stay as they are read in the repository.
"""

import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
CODE = re.compile(r"`[^`\n]+`")  # in a table GitHub wants its pipes escaped, mkdocs does not
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)")
ABROAD = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}  # what a browser fetches


def on_files(files, config):
    texts = {f"docs/{file.src_uri}": file for file in files if file.src_uri.endswith(".md")}
    for source, page in PAGES.items():
        texts[source] = File.generated(config, page, content=(ROOT / source).read_text())
        files.append(texts[source])
    for source, file in texts.items():
        parts = LINK.split(file.content_string)  # every other one is a link
        parts[1::2] = [_in_site(link, source, file, files, config) for link in parts[1::2]]
        file.content_string = CODE.sub(lambda code: code[0].replace(r"\|", "|"), "".join(parts))
    return files


def _in_site(link, source, page, files, config):
    """Where the site has what a page links to, as the page sees it; a file of the repository is added to it."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if (ROOT / target / "README.md").is_file():
        target += "/README.md"
    if target in PAGES:
        at = PAGES[target]
    elif target.startswith("docs/"):
        at = target.removeprefix("docs/")
    elif (ROOT / target).is_file():
        at = f"files/{target}" + ".txt" * target.endswith(".py")  # browsers show text, and save programs
        if files.get_file_from_path(at) is None:
            files.append(File.generated(config, at, content=(ROOT / target).read_bytes()))
    else:
        return link  # for mkdocs to complain of
    return posixpath.relpath(at, posixpath.dirname(page.src_uri) or ".")


def on_page_content(html, page, config, files):
    if page.file.src_uri.endswith(".ipynb"):  # these links mkdocs does not see
        html = re.sub(r'(href="[^":]+)\.(?:md|ipynb)(?=[#"])', r"\1.html", html)
    return html


class Links(HTMLParser):
    """Names of a page's elements, what it links to, and what a browser would fetch elsewhere to show it."""

    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.abroad = {"", "__top"}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names |= {attributes.get("id"), attributes.get("name")}
        for target in (attributes.get("href"), attributes.get("src")):
            if target and not urlsplit(target).scheme and not target.startswith("//"):
                self.links.append(target)
        target = attributes.get(ABROAD.get(tag)) or ""
        if target.startswith(("http", "//")) and attributes.get("rel") != "canonical":
            self.abroad.append(target)


def on_post_build(config):
    site = Path(config.site_dir)
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    wrong = []
    for path, page in pages.items():
        wrong += [f"{path.relative_to(site)}: fetches {target}" for target in page.abroad]
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.exists() and (target not in pages or unquote(parts.fragment) in pages[target].names)
            wrong += [] if there else [f"{path.relative_to(site)}: no {link}"]
    if wrong:
        raise PluginError("links:\n" + "\n".join(wrong))
