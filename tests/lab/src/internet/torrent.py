"""A node of Mainline DHT by libtorrent: python3 torrent.py ADDRESS BEGIN_WITH REPORT. Writes its counters to REPORT."""

import json
import os
import sys
import time

import libtorrent

address, begin_with, report = sys.argv[1:]
session = libtorrent.session({
    "listen_interfaces": f"{address}:6881",
    "dht_bootstrap_nodes": begin_with,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    # What protects it against swarms of nodes in one network and against floods is meant for a network of millions:
    # here all nodes are neighbours, and each item is near to all of them.
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_block_ratelimit": 1000,
    "dht_upload_rate_limit": 1000000,
})
while True:
    session.post_session_stats()
    time.sleep(0.25)
    for alert in session.pop_alerts():
        if isinstance(alert, libtorrent.session_stats_alert):
            counters = {name: value for name, value in alert.values.items() if name.startswith("dht.")}
            with open(report + ".new", "w") as file:
                json.dump(counters, file)
            os.rename(report + ".new", report)
