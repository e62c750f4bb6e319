"""Tests of the room scenes."""
