"""Files, processes, progress, servers, provenance and statistics; independent of the method."""
