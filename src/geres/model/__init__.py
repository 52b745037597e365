"""Values and states: no input or output, no clock."""
