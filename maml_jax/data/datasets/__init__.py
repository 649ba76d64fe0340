"""One module per data set, each with its specification `SPEC`."""

__all__ = []
