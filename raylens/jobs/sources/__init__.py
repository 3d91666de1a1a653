"""Pictures that are in another place, and that a job names by their ids."""
