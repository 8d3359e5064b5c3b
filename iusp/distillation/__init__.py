"""What a student can learn from a teacher besides labels: one small file per loss."""
