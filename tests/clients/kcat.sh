#!/usr/bin/env bash
# kcat of Debian: lists, writes, reads, reads as a group.
source "$(dirname "$0")/common.sh"

have kcat || skip "kcat is not installed (apt-get install kcat)"

contains "list" "topic \"$topic\" with 2 partitions" "$(kcat -b "$bootstrap" -L)"
seq 1 1000 | kcat -b "$bootstrap" -t "$topic" -P -z lz4
same "read" "$(seq 1 1000 | sort)" "$(kcat -b "$bootstrap" -t "$topic" -C -e -q | sort)"
# The client chooses the partition.
last() { for partition in 0 1; do kcat -b "$bootstrap" -t "$topic" -p "$partition" -C -o -1 -e -q; done; }
same "read the last" "1000" "$(last | sort -n | tail -n 1)"

# A group reads all records once, and none of them again.
same "group" "$(seq 1 1000 | sort)" "$(timeout 40 kcat -b "$bootstrap" -G "kcat-$topic" -X auto.offset.reset=earliest -c 1000 -q "$topic" 2>"$directory/group" | sort)"
seq 1001 1010 | kcat -b "$bootstrap" -t "$topic" -P -z zstd
same "group again" "$(seq 1001 1010 | sort)" "$(timeout 40 kcat -b "$bootstrap" -G "kcat-$topic" -X auto.offset.reset=earliest -c 10 -q "$topic" 2>>"$directory/group" | sort)"
