"""The `baton` command; one module a subcommand, imported when it is asked for."""
