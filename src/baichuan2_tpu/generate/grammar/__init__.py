"""Constrained answers: JSON schemas and patterns, bounded, compiled and followed token by token."""
