"""Settings: their table, value parsers, files, and how a process finds the handler."""
