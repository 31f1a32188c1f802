"""The tables of the documentation, each rendered from committed figures by a function of its own."""
