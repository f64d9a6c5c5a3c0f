"""What every other room may use: files, processes, progress, provenance. It knows nothing of the method."""
