"""Interfaces to the platform: a backend's compiler, replicas and processes, and a system's files and locks."""
