#!/usr/bin/env bash
# The clients and tools of Apache Kafka 4.1: console producer and consumer, kafka-topics, kafka-configs,
# kafka-consumer-groups.
source "$(dirname "$0")/common.sh"

have java || skip "java is not installed (scripts/install-deps.sh test)"
have mvn || skip "maven is not installed (scripts/install-deps.sh test)"
libs="$("$root/scripts/kafka.sh" fetch)"
tools=org.apache.kafka.tools

tool() {
    local class="$1"
    shift
    timeout 60 java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC \
        -cp "$libs/*" "$class" --bootstrap-server "$bootstrap" "$@" 2>>"$directory/java.log"
}

{
    made="$(tool $tools.TopicCommand --create --topic "$topic-made" --partitions 2)"
    contains "create" "Created topic" "$made"
    tool kafka.admin.ConfigCommand --alter --entity-type topics --entity-name "$topic-made" \
        --add-config message.timestamp.type=LogAppendTime >/dev/null
    described="$(tool $tools.TopicCommand --describe --topic "$topic-made")"
    contains "describe" "PartitionCount: 2" "$described"
    contains "describe settings" "message.timestamp.type=LogAppendTime" "$described"
} &
topics=$!

seq 1 500 | tool $tools.ConsoleProducer --topic "$topic" --compression-codec zstd
# The consumer subscribes, as the only member of a group.
read="$(tool $tools.consumer.ConsoleConsumer --topic "$topic" --group "java-$topic" --from-beginning --max-messages 500 --timeout-ms 30000)"
same "read as a group" "$(seq 1 500 | sort)" "$(sort <<<"$read")"

described="$(tool $tools.consumer.group.ConsumerGroupCommand --describe --group "java-$topic")"
contains "describe the group" "java-$topic" "$described"
# Group, topic, partition, committed offset, end offset, lag.
same "lag" "0" "$(awk -v topic="$topic" '$2 == topic { lag += $6; end += $5 } END { print (end == 500) ? lag : "end " end }' <<<"$described")"
wait "$topics" || fail "kafka-topics: see $directory/java.log"
