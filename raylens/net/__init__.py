"""Outbound HTTP to addresses that others name, with checks on where they lead."""
