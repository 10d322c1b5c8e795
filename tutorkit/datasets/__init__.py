"""Small sets written for this project, each with a data card."""
