"""Pure decisions: which processes run, the state of each connection, and the messages between processes."""
