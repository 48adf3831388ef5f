#!/bin/bash
# Creates the topics of the system. The number of partitions limits the consumers of one API. Safe to repeat: existing
# topics stay as they are.
set -euo pipefail

export KAFKA_OPTS="-XX:TieredStopAtLevel=1" # faster for a short-lived program
topics() { /opt/kafka/bin/kafka-topics.sh --bootstrap-server kafka:9092 "$@"; }

# Each call starts a JVM, so make none for existing topics.
existing=$(topics --list)
for topic in order-events order-events.dlq inventory-events inventory-events.dlq; do
    grep -qx "$topic" <<<"$existing" || topics --create --if-not-exists --topic "$topic" --partitions 3
done
