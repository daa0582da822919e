#!/bin/bash
# Removes the chains that network-node-manager leaves in a node's kernel. As root; docs/migration.md says when. Where
# iptables-legacy-save shows them: tools="iptables-legacy ip6tables-legacy" bash THIS_FILE
tools=${tools:-iptables ip6tables}

for iptables in $tools; do
    for table in raw nat filter; do
        "$iptables" -t $table -S | sed -n 's/^-A \([A-Z]* -j NMANAGER_.*\)/\1/p' |
            xargs -r -L 1 "$iptables" -t $table -D
        chains=$("$iptables" -t $table -S | sed -n 's/^-N \(NMANAGER_.*\)/\1/p')
        for chain in $chains; do "$iptables" -t $table -F "$chain"; done
        for chain in $chains; do "$iptables" -t $table -X "$chain"; done
    done
done
