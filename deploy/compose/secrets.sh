#!/bin/bash
# Makes the CA, the certificates and the passwords of the containers, and puts each into the volume of the container that
# uses it. Runs at each start: makes what is missing, and renews certificates that expire within a year.
set -euo pipefail
umask 077
cd /run/secrets

PROCESS=10001 # the user of our images
POSTGRES=$(id -u postgres)
KAFKA=1000 # the user of the Kafka image

# put FILE USER: replace the file atomically by standard input; only the user may read it.
put() {
    cat >"$1.new"
    chmod 400 "$1.new"
    chown "$2" "$1.new"
    mv "$1.new" "$1"
}

# password NAME: print the password.
password() {
    [ -e "authority/$1" ] || head -c 24 /dev/urandom | base64 | tr '+/' '-_' | put "authority/$1" 0
    cat "authority/$1"
}

is_valid() { openssl verify -CAfile authority/ca.crt "$1" && openssl x509 -noout -checkend $((365 * 24 * 3600)) -in "$1"; }

new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1"; }

make_authority() {
    [ -e authority/ca.crt ] && return
    new_key authority/ca.key
    openssl req -x509 -new -key authority/ca.key -days 3650 -subj "/CN=shop containers CA" -out authority/ca.crt.new \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign
    mv authority/ca.crt.new authority/ca.crt
}

# make_certificate NAME: write authority/NAME.crt and authority/NAME.key.
make_certificate() {
    local new=authority/new name=$1
    { [ -e "authority/$name.crt" ] && is_valid "authority/$name.crt" >/dev/null 2>&1; } && return
    new_key "$new.key"
    openssl req -new -key "$new.key" -subj "/CN=$name" | openssl x509 -req -days 730 -out "$new.crt" \
        -CA authority/ca.crt -CAkey authority/ca.key -set_serial "0x$(openssl rand -hex 16)" -extfile <(
            echo basicConstraints=critical,CA:FALSE
            echo keyUsage=critical,digitalSignature
            echo extendedKeyUsage=serverAuth,clientAuth
            echo subjectKeyIdentifier=hash
            echo authorityKeyIdentifier=keyid
            # PostgreSQL and Kafka are also reached at the ports that they publish on this machine.
            echo "subjectAltName=URI:spiffe://shop/$name,DNS:$name,DNS:localhost,IP:127.0.0.1"
        )
    mv "$new.key" "authority/$name.key"
    mv "$new.crt" "authority/$name.crt"
}

make_authority
for name in inventory-api order-api reservation-reaper load console gateway postgres kafka; do
    make_certificate "$name"
done

for name in inventory-api order-api reservation-reaper load console; do
    put "$name/tls.crt" $PROCESS <"authority/$name.crt"
    put "$name/tls.key" $PROCESS <"authority/$name.key"
done
for name in inventory-api order-api reservation-reaper load console event-relay gateway admin; do
    put "$name/ca.crt" $PROCESS <authority/ca.crt
done
# HAProxy reads the key from the file of the certificate.
cat authority/gateway.key authority/gateway.crt | put gateway/gateway.pem $PROCESS

put postgres/tls.crt "$POSTGRES" <authority/postgres.crt
put postgres/tls.key "$POSTGRES" <authority/postgres.key
for database in inventory orders; do
    for role in owner api relay console; do
        password "postgres-$database-$role" | put "admin/postgres-$database-$role" $PROCESS
    done
    password "postgres-$database-relay" | put "event-relay/$database-password" $PROCESS
done
password postgres-inventory-api | put inventory-api/database-password $PROCESS
password postgres-orders-api | put order-api/database-password $PROCESS

cat authority/kafka.key authority/kafka.crt | put kafka/kafka.pem $KAFKA
# The administrator logs in with PLAIN, on the listener inside the network only: users of SCRAM exist after its first login.
put kafka/jaas.conf $KAFKA <<JAAS
KafkaServer {
    org.apache.kafka.common.security.scram.ScramLoginModule required;
    org.apache.kafka.common.security.plain.PlainLoginModule required user_admin="$(password kafka-admin)";
};
JAAS
for name in admin event-relay inventory-api order-api shopctl; do
    password "kafka-$name" | put "admin/kafka-$name" $PROCESS
done
for name in event-relay inventory-api order-api; do
    password "kafka-$name" | put "$name/kafka-password" $PROCESS
done
