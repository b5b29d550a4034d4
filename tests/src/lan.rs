//! Local networks behind a router that hides them, as at home.

use std::net::Ipv4Addr;

use crate::netns::{Namespace, Network, ip};

/// How a router shows its hosts outside (RFC 4787).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Under another port for each destination: no hole can be punched.
    PerDestination,
    /// Under the same port for all destinations, as most home routers do.
    EndpointIndependent,
}

/// A switch of its own behind a router. Its hosts reach the network outside under the router's address
/// alone; from outside nothing comes in that was not asked for. Only the scenario's own process reaches
/// the hosts, to be their client.
pub struct Lan {
    router: Namespace,
    prefix: String,
    subnet: [u8; 3],
    dht: Ipv4Addr,
}

impl Lan {
    /// Behind host `number` of the network outside, which shows another port for each destination.
    pub fn behind(network: &Network, number: u8, dht: u8) -> Self {
        Self::mapped(network, number, dht, Mapping::PerDestination)
    }

    /// The same behind a router of this kind.
    pub fn mapped(network: &Network, number: u8, dht: u8, mapping: Mapping) -> Self {
        let router = network.add(&format!("r{number}"), number, dht);
        let [_, own, count, _] = network.host(number).octets();
        // Beyond what networks use; different for each router of each process.
        let subnet = [10, 192 + own % 64, count.wrapping_mul(16).wrapping_add(number)];
        let [a, b, c] = subnet;
        let lan = format!("{a}.{b}.{c}");
        let name = &router.name;
        ip(&["-n", name, "link", "add", "lan0", "type", "bridge"]);
        ip(&["-n", name, "link", "set", "lan0", "type", "bridge", "mcast_snooping", "0"]);
        ip(&["-n", name, "addr", "add", &format!("{lan}.1/24"), "dev", "lan0"]);
        ip(&["-n", name, "link", "set", "lan0", "up"]);
        let forward = ["-w", "net.ipv4.ip_forward=1"];
        let forwards = router.command("sysctl".as_ref()).args(forward).output().unwrap();
        assert!(forwards.status.success(), "{forwards:?}");
        // The kernel keeps a host's own port where it can, and then it is the same for all.
        // What comes in without having been asked for is dropped before the kernel gives its port away.
        let (ports, unasked) = match mapping {
            Mapping::PerDestination => ("fully-random", "accept"),
            Mapping::EndpointIndependent => ("", "drop"),
        };
        router.nft(&format!(
            "table ip nat {{
               chain out {{ type nat hook postrouting priority 100;
                 oifname eth0 ip saddr {lan}.0/24 masquerade {ports}; }}
               chain in {{ type nat hook prerouting priority -100; }}
             }}
             table ip input {{
               chain c {{ type filter hook input priority 0;
                 iifname eth0 meta l4proto udp ct state new {unasked}; }}
             }}
             table ip forward {{
               chain c {{ type filter hook forward priority 0; policy drop;
                 ct state established,related accept;
                 ct status dnat accept;
                 ip saddr {scenario} accept;
                 iifname lan0 accept; }}
             }}\n",
            scenario = network.host(254),
        ));
        let via = router.address().to_string();
        ip(&["route", "replace", &format!("{lan}.0/24"), "via", &via]);
        let prefix = format!("{}l{number}", network.prefix);
        Self { router, prefix, subnet, dht: network.host(dht) }
    }

    /// Adds a host. The public bootstrap names of the DHT resolve to the same host as outside.
    pub fn add(&self, network: &Network, label: &str, number: u8) -> Namespace {
        let [a, b, c] = self.subnet;
        let address = Ipv4Addr::new(a, b, c, number);
        let host = network.bare(label, address, self.dht);
        let port = format!("{}p{number}", self.prefix);
        let (router, name) = (self.router.name.as_str(), host.name.as_str());
        ip(&[
            "-n", router, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
            name,
        ]);
        ip(&["-n", router, "link", "set", &port, "master", "lan0", "up"]);
        ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        ip(&["-n", name, "route", "add", "default", "via", &format!("{a}.{b}.{c}.1")]);
        host
    }

    /// The router's address outside.
    pub fn outside(&self) -> Ipv4Addr {
        self.router.address()
    }

    /// Forwards a UDP port of the router to the same port of a host.
    pub fn forward(&self, port: u16, host: &Namespace) {
        self.router.nft(&format!(
            "add rule ip nat in iifname eth0 udp dport {port} dnat to {}:{port}\n",
            host.address()
        ));
    }

    /// From now on no host of this network begins to send UDP to this address outside.
    pub fn never_dials(&self, outside: Ipv4Addr) {
        self.router.nft(&format!(
            "insert rule ip forward c iifname lan0 ip daddr {outside} meta l4proto udp ct state new drop\n"
        ));
    }
}
