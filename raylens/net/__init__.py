"""Outbound HTTP to URLs from untrusted callers, with checks of the addresses they lead to."""
