"""Settings of a processor, and of clients of Kafka: a class for either, a sentence a field."""

from __future__ import annotations

import re
import secrets
import socket
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from registry.directory import Node, is_address, plain_name
from registry.networks import (
    authority,
    host_and_port,
    is_ip_address,
    is_loopback,
    is_wildcard,
    network_list,
    networks,
    within,
)
from registry.settings import CallSettings, TracingSettings, reachable_address, readable_ca_file


class KafkaSettings(BaseSettings):
    """How to reach Kafka."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    kafka_bootstrap: Annotated[
        str, Field(min_length=1, description="Kafka bootstrap servers, a comma list of host:port.")
    ] = "localhost:9092"
    kafka_topics: Annotated[
        str, Field(min_length=1, description="Topics with messages to push, a comma list.")
    ] = "push"
    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Field(description="Kafka's security.protocol."),
    ] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        Field(description="Kafka's sasl.mechanism."),
    ] = "PLAIN"
    kafka_sasl_username: Annotated[str | None, Field(description="SASL user name.")] = None
    kafka_sasl_password: Annotated[SecretStr | None, Field(description="SASL password.")] = None
    kafka_ca_file: Annotated[
        str | None,
        AfterValidator(readable_ca_file),
        Field(description="PEM file of the CA that signed the brokers' certificates."),
    ] = None

    kafka_fetch_wait_ms: Annotated[
        int,
        Field(ge=1, le=30_000, description="How long a broker may hold an empty fetch open."),
    ] = 500

    @property
    def topics(self) -> list[str]:
        """The topics as a list."""
        return [topic.strip() for topic in self.kafka_topics.split(",") if topic.strip()]

    @property
    def bootstrap_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each bootstrap server."""
        parts = (host_and_port(address.strip()) for address in self.kafka_bootstrap.split(","))
        return [(host, int(port)) for host, port in parts]

    @field_validator("kafka_bootstrap")
    @classmethod
    def _of_addresses(cls, value: str) -> str:
        for address in value.split(","):
            if not is_address(address.strip()):
                raise ValueError(f"{address.strip()!r} is no host:port")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.topics:
            raise ValueError(f"kafka_topics {self.kafka_topics!r} names no topic")
        if "SASL" in self.kafka_security_protocol and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError(
                f"kafka_security_protocol {self.kafka_security_protocol} needs "
                "PUSHGATE_KAFKA_SASL_USERNAME and PUSHGATE_KAFKA_SASL_PASSWORD"
            )
        return self


class OutcomesSettings(KafkaSettings):
    """The topic of outcomes."""

    outcomes_topic: Annotated[
        str | None,
        Field(
            min_length=1, description="Topic that tells what became of each message; none if unset."
        ),
    ] = None


class DeadLetterSettings(KafkaSettings):
    """The topic of rejected records."""

    dead_letter_topic: Annotated[
        str, Field(min_length=1, description="Topic that keeps records which break the rules.")
    ] = "push.dead"


class RecordSettings(OutcomesSettings):
    """The rules of processors for records, for `pushgate send` too."""

    max_payload_bytes: Annotated[
        int, Field(ge=1, le=3 * 1024 * 1024, description="Largest payload that is delivered.")
    ] = 65_536


class PortSettings(CallSettings):
    """The processors' ports that tools know."""

    processor_networks: Annotated[
        str,
        AfterValidator(network_list),
        Field(
            description="Networks that a processor's advertised address must be in, a comma list "
            "of CIDRs: tools ask no others. Empty: any."
        ),
    ] = ""


class ProcessorSettings(PortSettings, RecordSettings, DeadLetterSettings, TracingSettings):
    """Flags and PUSHGATE_… variables of `pushgate processor`."""

    kafka_group: Annotated[
        str, Field(min_length=1, description="Consumer group of all processors.")
    ] = "pushgate"
    kafka_start: Annotated[
        Literal["end", "earliest"],
        Field(
            description="Where a new consumer group starts in what exists already, and a group at "
            "work in an existing topic that is added to its topics."
        ),
    ] = "end"
    kafka_weights: Annotated[
        str,
        Field(
            description="Weights of the topics, a comma list in their order, 1 each if empty: "
            "each topic has its share of every batch."
        ),
    ] = ""
    outcomes_sample: Annotated[
        float,
        Field(ge=0, le=1, description="Share of messages whose outcomes are told, by their ids."),
    ] = 1.0
    create_topics: Annotated[
        bool,
        Field(
            description="Whether a processor creates its dead-letter and outcomes topics where "
            "they do not exist, with the partitions and replicas of the first of its topics."
        ),
    ] = False
    processor_host: Annotated[
        str, Field(description="Address of /healthz, /readyz, /metrics and /status.")
    ] = "127.0.0.1"
    processor_port: Annotated[
        int, Field(ge=0, le=65535, description="Port of /healthz, /readyz, /metrics and /status.")
    ] = 8082
    processor_advertise_address: Annotated[
        str | None,
        AfterValidator(reachable_address),
        Field(
            description="host:port under which pushgate top reaches this processor; if unset, the "
            "address above where other hosts reach it, else none."
        ),
    ] = None
    resume_bytes: Annotated[
        int,
        Field(
            ge=1024 * 1024,
            description="How many bytes of messages a processor has at hand for clients that "
            "reconnect; older messages are read again from Kafka for a client that missed them.",
        ),
    ] = 64 * 1024 * 1024
    batch_messages: Annotated[
        int, Field(ge=1, le=100_000, description="Most records handled in one go.")
    ] = 2_000
    lookup_cache_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=60,
            description="How long a look-up is good for; for so long a message may miss a device "
            "that has just come.",
        ),
    ] = 0.0
    forward_timeout_seconds: Annotated[
        float, Field(gt=0, le=60, description="How long one forward to a gateway may take.")
    ] = 2.0
    trace_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of messages without a traceparent that are traced all the same.",
        ),
    ] = 0.0
    overloaded_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=300,
            description="How long a message without a TTL waits for a user whose connection has no "
            "room.",
        ),
    ] = 10.0

    @property
    def processor_name(self) -> str:
        """This processor's name in reports: host name and port, as of a gateway."""
        return f"{socket.gethostname()[:50]}-{self.processor_port}"

    def port_for_tools(self) -> Node | None:
        """Return this start of the processor, for tools; None where tools can't reach it.

        Each call draws a new epoch.
        """
        address = self._advertised()
        if address is None:
            return None
        return Node(plain_name(self.processor_name), secrets.token_hex(8), address)

    def own_address(self) -> str:
        """Return host:port of the processor's listener."""
        return authority(self.processor_host, self.processor_port)

    def _advertised(self) -> str | None:
        host = self.processor_host
        if self.processor_advertise_address is not None:
            return self.processor_advertise_address
        is_reached = not (is_wildcard(host) or is_loopback(host)) and self.processor_port
        return self.own_address() if is_reached else None

    @model_validator(mode="after")
    def _port_in_the_networks(self) -> Self:
        host, _ = host_and_port(self._advertised() or "")
        allowed = networks(self.processor_networks)
        # A host name is judged by those who call: they may resolve the name otherwise.
        if allowed and is_ip_address(host) and not within(allowed)(host):
            raise ValueError(
                f"the processor's address {host} is in none of PUSHGATE_PROCESSOR_NETWORKS "
                f"{self.processor_networks!r}: pushgate top would not ask it"
            )
        return self

    @property
    def weights(self) -> list[int]:
        """The weight of every topic, in the order of `topics`."""
        weights = [int(weight) for weight in self.kafka_weights.split(",") if weight.strip()]
        return weights or [1] * len(self.topics)

    @field_validator("kafka_weights")
    @classmethod
    def _of_numbers(cls, value: str) -> str:
        for weight in filter(str.strip, value.split(",")):
            if not re.fullmatch(r"[1-9][0-9]{0,3}", weight.strip(), re.ASCII):
                raise ValueError(f"{weight.strip()!r} is no weight from 1 to 9999")
        return value

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if len(self.weights) != len(self.topics):
            raise ValueError(
                f"kafka_weights {self.kafka_weights!r} are {len(self.weights)}, "
                f"kafka_topics are {len(self.topics)}"
            )
        if len(set(self.topics)) < len(self.topics):
            raise ValueError(f"kafka_topics {self.kafka_topics!r} names a topic twice")
        if self.batch_messages < len(self.topics):
            raise ValueError(f"batch_messages {self.batch_messages} is less than there are topics")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.dead_letter_topic in self.topics:
            raise ValueError(
                f"dead_letter_topic {self.dead_letter_topic!r} is one of kafka_topics: "
                "what is rejected would be read again for ever"
            )
        if self.outcomes_topic in (*self.topics, self.dead_letter_topic):
            raise ValueError(f"outcomes_topic {self.outcomes_topic!r} is used for something else")
        return self
