"""The subcommands of `rag-app`, a module each; none imports anything heavy before it runs."""
