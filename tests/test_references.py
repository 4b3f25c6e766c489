"""Everything that the texts refer to exists: files, links, anchors, modules and tests named in Markdown and in
Python."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("lmfn", "lmfn_kernels", "bench", "tests", "docs", "experiments")
PAGES = [path for name in (".", *FOLDERS) for path in (ROOT / name).glob("*.md" if name == "." else "**/*.md")]
SCRIPTS = [path for name in (".", *FOLDERS) for path in (ROOT / name).glob("*.py" if name == "." else "**/*.py")]
PATH = re.compile(rf"(?<![\w/.~-])(?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|md|json|png|toml)\b")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)")
MODULE = re.compile(r"python -m ((?:bench|experiments|lmfn|lmfn_kernels)\b[\w.]*\w)")
PYTEST = re.compile(r"pytest(?: -s)?((?: [\w/]+\.py)+)(?: -k (\"[\w ]+\"|\w+))?")


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def stale(source: Path) -> Iterator[str]:
    """The references of a file that lead nowhere."""
    text = " ".join(source.read_text(encoding="utf-8").split())
    for path in PATH.findall(text):
        if not any((base / path).exists() for base in (ROOT, source.parent)):
            yield path
    for module in MODULE.findall(text):
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            yield f"python -m {module}"
    for files, words in PYTEST.findall(text):
        tests = "".join((ROOT / file).read_text(encoding="utf-8") for file in files.split() if (ROOT / file).is_file())
        for word in words.strip('"').split(" or "):
            if not re.search(rf"def test_\w*{word}", tests):
                yield f"pytest{files} -k {word}"
    for target, anchor in LINK.findall(text) if source.suffix == ".md" else ():
        page = source.parent / target if target else source
        if not page.exists():
            yield f"({target})"
        elif anchor and anchor not in anchors(page):
            yield f"({target}#{anchor})"


@pytest.mark.parametrize("sources", [PAGES, SCRIPTS], ids=["Markdown", "Python"])
def test_references_lead_somewhere(sources: list[Path]) -> None:
    assert sources
    assert [f"{path.relative_to(ROOT)}: {found}" for path in sources for found in stale(path)] == []


def test_a_stale_reference_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    gone, module = "/".join(("lmfn", "gone.py")), " ".join(("python -m", "bench.gone"))
    page.write_text(f"# A page\n\n[a](#a-page) [b](#b) [c](c.md) `{gone}` `{module}`\n")
    assert list(stale(page)) == [gone, module, "(#b)", "(c.md)"]
