"""What steps hand to each other: one typed class per folder or file, which writes it and reads it."""
