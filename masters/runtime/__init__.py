"""Files, processes, progress, servers and provenance; independent of the method."""
