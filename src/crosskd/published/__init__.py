"""The command lines of the published code, over the functions of this package: docs/published.md."""
