#!/bin/bash
# The topics that the system reads and writes, with as many partitions as one API may have consumers. Safe to repeat:
# a topic that is there stays as it is.
set -euo pipefail

export KAFKA_OPTS="-XX:TieredStopAtLevel=1" # for a program that runs for seconds
topics() { /opt/kafka/bin/kafka-topics.sh --bootstrap-server kafka:9092 "$@"; }

# Each call is a JVM of its own: none for what is there.
there=$(topics --list)
for topic in order-events order-events.dlq inventory-events inventory-events.dlq; do
    grep -qx "$topic" <<<"$there" || topics --create --if-not-exists --topic "$topic" --partitions 3
done
