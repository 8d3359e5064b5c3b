"""Tests that build the images and run containers, in a real Docker engine."""
