"""The commands: arguments in, text out. What they do lives in the other folders."""
