#!/usr/bin/env bash
# Runs a real Apache Kafka 4.1 on this machine: one KRaft node for tests, from Maven Central, without a container.
#
#   scripts/kafka.sh start DIR     start it with its data in DIR, and wait until it answers. DIR/bootstrap has its address,
#                                  DIR/tls what a client needs for its listener with TLS and SCRAM: bootstrap, ca.pem, user,
#                                  password, and other-ca.pem, an unrelated certificate authority
#   scripts/kafka.sh stop DIR      stop it
#   scripts/kafka.sh status DIR    print whether it runs; the exit code is 0 if so, else 1
#   scripts/kafka.sh fetch         only download the jars, and print their directory
#
# Needs java, mvn and openssl (scripts/install-deps.sh test).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/server.sh
source "$(dirname "${BASH_SOURCE[0]}")/server.sh"

name=Kafka
version=4.1.0
address=bootstrap
log=kafka.log
mark=server.properties
taken='Address already in use\|BindException'
pom="$wye_root/scripts/kafka/pom.xml"
# The name of the directory has a digest of the list of jars, so another list has another directory.
fetched="$wye_cache/kafka-$version-$(sha256sum "$pom" | cut -c1-12)"
ready_seconds=90
stop_seconds=30
mib=$((1024 * 1024))

fetch() { copy_jars "$pom" "$fetched" "Apache Kafka $version"; }

check() {
    have java || fail "java is missing: run scripts/install-deps.sh test"
    have openssl || fail "openssl is missing: run scripts/install-deps.sh test"
}

# Whether the broker answers the Kafka protocol: an ApiVersions request, version 0, correlation id 7, must come back
# with that id and error code 0. Brokers refuse to process requests until they have joined the cluster.
answers() {
    local port="$1" answer
    # length 13, api key 18, api version 0, correlation id 7, client id "wye"
    # shellcheck disable=SC2016 # the inner shell expands it
    answer="$(timeout 5 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf "\x00\x00\x00\x0d\x00\x12\x00\x00\x00\x00\x00\x07\x00\x03wye" >&3
        head -c 10 <&3 | od -An -tx1 | tr -d " \n"' ask "$port" 2>/dev/null)" || return 1
    [ "${answer:8}" = "000000070000" ]
}

# Creates two certificate authorities, a certificate for 127.0.0.1 by the first, and the name and password of a user.
make_credentials() {
    mkdir -p "$dir/tls"
    (
        umask 077
        cd "$dir/tls" \
            && new_authority ca \
            && new_authority other-ca \
            && openssl req -newkey rsa:2048 -nodes -subj "/CN=127.0.0.1" -keyout server.key -out server.csr \
            && openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
                -extfile <(echo "subjectAltName=IP:127.0.0.1,DNS:localhost") -out server.pem \
            && cat server.key server.pem ca.pem >keystore.pem \
            && printf wye >user \
            && openssl rand -hex 16 | tr -d '\n' >password
    ) </dev/null >"$dir/kafka.log" 2>&1 || fail "cannot create certificates: see $dir/kafka.log"
}

new_authority() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=wye tests $1" -keyout "$1.key" -out "$1.pem"
}

write_properties() {
    local broker_port="$1" controller_port="$2" secured_port="$3"
    cat >"$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$broker_port,SASL_SSL://127.0.0.1:$secured_port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=PLAINTEXT://127.0.0.1:$broker_port,SASL_SSL://127.0.0.1:$secured_port
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location=$dir/tls/keystore.pem
listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
log.dirs=$dir/data
# One node: nothing to replicate to, and a consumer group need not wait for members that do not exist.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# Topics are created explicitly, with their settings.
auto.create.topics.enable=false
# Columnar batches are large messages.
message.max.bytes=$((16 * mib))
replica.fetch.max.bytes=$((16 * mib))
socket.request.max.bytes=$((100 * mib))
EOF
}

launch() {
    local ports
    ports="$(free_ports 3)"
    # shellcheck disable=SC2086 # three arguments
    write_properties $ports
    local port="${ports%% *}" secured_port="${ports##* }"
    if [ ! -e "$dir/data/meta.properties" ]; then
        local id user password
        make_credentials
        user="$(cat "$dir/tls/user")"
        password="$(cat "$dir/tls/password")"
        id="$(java -cp "$fetched/*" kafka.tools.StorageTool random-uuid 2>/dev/null)"
        java -cp "$fetched/*" kafka.tools.StorageTool format -t "$id" -c "$dir/server.properties" \
            --add-scram "SCRAM-SHA-256=[name=$user,password=$password]" \
            --add-scram "SCRAM-SHA-512=[name=$user,password=$password]" >"$dir/kafka.log" 2>&1 \
            || fail "cannot format $dir/data: see $dir/kafka.log"
    fi
    # In another session, so that an interrupt at the terminal goes to the tests and not to the broker.
    setsid java -Xms256m -Xmx512m -XX:+UseG1GC \
        "-Dlog4j2.configurationFile=$wye_root/scripts/kafka/log4j2.properties" \
        -cp "$fetched/*" kafka.Kafka "$dir/server.properties" </dev/null >>"$dir/kafka.log" 2>&1 &
    ready $! "$port" || return 1
    echo "127.0.0.1:$secured_port" >"$dir/tls/bootstrap"
    publish "127.0.0.1:$port"
}

main "$@"
