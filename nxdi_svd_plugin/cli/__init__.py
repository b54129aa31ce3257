"""The command nxdi-svd: one file a subcommand, heavy imports inside run()."""
