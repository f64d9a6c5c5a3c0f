"""Files, processes, progress, servers and statistics; independent of the method."""
