"""Speed and quality measured against a named peer; each module is a command."""
