"""A processor worker: from Kafka to the gateway that owns the connection."""
