"""The command line: one thin module per sub-command. What a command does is in the layers below; here are its flags and what it prints."""
