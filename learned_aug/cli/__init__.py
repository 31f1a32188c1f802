"""The ``learned-aug`` command, one file for each of its commands."""
