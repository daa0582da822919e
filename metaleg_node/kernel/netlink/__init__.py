"""What is read and changed by netlink: addresses, links, routes, rules, neighbours, connections."""
