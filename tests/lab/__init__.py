"""The demo's lab grown into what tests need: other ways between pods, kube-proxy's rules, ICMP and UDP, daemons that
are asked, stopped and reloaded."""
