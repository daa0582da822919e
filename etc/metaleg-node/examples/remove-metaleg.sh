#!/bin/bash
# Removes what metaleg 0.2 leaves in a node's kernel, once metaleg-node runs on all nodes and metaleg on none: moves the
# TCP connections that metaleg carries, then removes its chains, sets, rules and routes. As root; docs/migration.md says
# when. Where iptables-legacy-save shows metaleg's chains: tools="iptables-legacy ip6tables-legacy" bash THIS_FILE
tools=${tools:-iptables ip6tables}
mask=${mask:-0xf00000}            # FIREWALL_MASK
first=${first:-100000}            # ROUTE_TABLE_ID_OFFSET
last=${last:-$((first + 15))}     # as many tables as the mask has values

type conntrack ipset >/dev/null || exit 1

# Connections that left untranslated for the gateway are forgotten, so that their next packet is metaleg-node's.
for family in 4 6; do
    for set in $(ipset list -n | grep METALEG-SRC-); do
        for pod in $(ipset list "$set" | sed -n 's/ timeout 0$//p'); do
            conntrack -L -f "ipv$family" -p tcp -s "$pod"
        done
    done 2>/dev/null | grep -v TIME_WAIT |
        sed -nE 's/.* src=(\S+) dst=(\S+) sport=(\S+) dport=(\S+) .*src=\2 dst=\1 sport=\4 dport=\3 .*/\1 \2 \3 \4/p' |
        while read -r pod to sport dport; do
            ipset -q test "METALEG-EXCLUDE-DST-$family" "$to" ||
                echo "-D -f ipv$family -p tcp -s $pod -d $to --sport $sport --dport $dport"
        done | conntrack -R - >/dev/null 2>&1
done

for iptables in $tools; do
    "$iptables" -t nat -D POSTROUTING -m mark ! --mark "0x0/$mask" -j RETURN
    for table in mangle nat filter; do
        "$iptables" -t $table -S | sed -n 's/^-A \([A-Z]* -j METALEG-.*\)/\1/p' |
            xargs -r -L 1 "$iptables" -t $table -D
        chains=$("$iptables" -t $table -S | sed -n 's/^-N \(METALEG-.*\)/\1/p')
        for chain in $chains; do "$iptables" -t $table -F "$chain"; done
        for chain in $chains; do "$iptables" -t $table -X "$chain"; done
    done
done
for set in $(ipset list -n | grep METALEG-); do ipset destroy "$set"; done
for table in $(seq "$first" "$last"); do
    for family in -4 -6; do
        while ip $family rule delete table "$table"; do :; done
        ip $family route flush table "$table"
    done
done 2>/dev/null
