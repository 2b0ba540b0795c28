"""What gateways and processors agree on: who is where, and what a message is."""
