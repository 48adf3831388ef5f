"""Reads the code of Markdown pages, so that tests can run it or compare it."""

from markdown_it import MarkdownIt


def code_blocks(page: str, language: str) -> list[str]:
    """The contents of the fenced blocks in this language, in their order."""
    return [token.content for token in MarkdownIt().parse(page) if token.type == "fence" and token.info == language]


def code_block_languages(page: str) -> set[str]:
    """The languages of all code blocks; the empty string for a block that names none."""
    return {token.info for token in MarkdownIt().parse(page) if token.type in ("fence", "code_block")}


def inline_code(page: str) -> list[str]:
    """The contents of `code` in sentences, lists and tables, in their order."""
    return [
        child.content
        for token in MarkdownIt().parse(page)
        for child in token.children or ()
        if child.type == "code_inline"
    ]
