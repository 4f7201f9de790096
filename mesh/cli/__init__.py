"""The command line. `entry.main` is the program; each command is a module that is imported when it is called."""
