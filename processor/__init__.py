"""A processor worker: reads Kafka, looks users up, forwards messages to their gateways.

The package has three wings: `reading` (Kafka in, offsets out), `sending` (from a message to its
gateways) and `outcomes` (delivered, offline, failed …). sending and outcomes import reading, and
not one another; reading is a leaf. `server` connects the wings by callbacks: reading hands messages
to sending, sending hands settled messages to outcomes, and outcomes tells reading which partitions
have advanced.
"""
