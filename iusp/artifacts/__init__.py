"""The files that steps pass to each other. One typed class writes and reads each folder or file."""
