#!/bin/sh
# Creates the topics, the users and their access rules. Safe to repeat: existing topics stay as they are.
set -eu
cd /run/secrets/admin
set -- --bootstrap kafka:9092
python -m shopctl kafka-create-topics "$@"
python -m shopctl kafka-create-users "$@" event-relay=kafka-event-relay inventory-api=kafka-inventory-api \
    order-api=kafka-order-api shopctl=kafka-shopctl
python -m shopctl kafka-create-acls "$@"
