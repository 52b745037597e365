"""geres: a batch scheduler without a head node."""
