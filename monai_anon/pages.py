"""HTML pages from templates: every value escaped, and one that is missing an error."""

import jinja2


def templates(package: str) -> jinja2.Environment:
    """The templates of a package's folder `templates`."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
