"""`orchestrate tune`: a search for the best parameters of a command."""
