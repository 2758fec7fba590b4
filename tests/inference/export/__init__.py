"""Exports; a package, so that it has a conftest of its own."""
