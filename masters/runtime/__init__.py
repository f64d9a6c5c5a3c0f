"""Files, processes, progress and servers; independent of the method."""
