"""A processor worker: reads Kafka, looks users up, forwards messages to their gateways.

Wings: `reading` (Kafka in, offsets out), `sending` (a message to its gateways) and `outcomes` (what
became of a message). sending and outcomes import reading and not each other; reading is a leaf.
`server` joins them by callbacks: reading hands messages to sending, sending hands settled messages
to outcomes, and outcomes tells reading which partitions have advanced.
"""
