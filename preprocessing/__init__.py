"""From picture bytes to pixels: pure array functions, one operation per file. No ray, no torch."""
