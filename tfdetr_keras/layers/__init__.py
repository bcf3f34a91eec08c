"""Layers that several networks are made of; they take numbers, not the configuration of one of them."""
