"""What the server does and has done in the last minutes, for people who look."""
