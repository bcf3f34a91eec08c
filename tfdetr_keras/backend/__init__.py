"""Seams to what the package runs on: the compiler, replicas and processes of a backend, files and locks of a system."""
