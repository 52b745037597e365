"""Pure decisions: who starts where, and why not."""
