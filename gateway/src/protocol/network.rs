//! IP addresses and networks as people write them: `203.0.113.7`, `10.0.0.0/8`, `2001:db8::/32`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// One address or a whole network. IPv4 addresses inside IPv6 (`::ffff:203.0.113.7`) are the IPv4
/// addresses that they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(IpNet);

impl Network {
    /// Reads an address or a network with its prefix length; bits behind the prefix do not matter.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.contains('/') {
            return text.parse::<IpNet>().ok().map(|network| Self(network.trunc()));
        }
        text.parse::<IpAddr>().ok().map(Self::host)
    }

    /// The network of one address.
    pub fn host(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// All networks that contain the address, itself first: at most 129.
    pub fn around(address: IpAddr) -> impl Iterator<Item = Self> {
        let host = Self::host(address).0;
        std::iter::successors(Some(host), IpNet::supernet).map(Self)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl serde::Serialize for Network {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("neither an address nor a network"))
    }
}

/// Whether an address can be reached from anywhere, by the special-purpose registries of IANA
/// (RFC 6890).
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        // Shared address space behind a carrier's NAT (RFC 6598).
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        // Benchmarks (RFC 2544).
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    if let Some(ip) = ip.to_ipv4_mapped() {
        return is_global_v4(ip);
    }
    // 6to4 carries an IPv4 address (RFC 3056), which may be anything.
    if let [0x2002, high, low, ..] = ip.segments() {
        return is_global_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    }
    // Only 2000::/3 is assigned to be global; this leaves out ::1, ::, fc00::/7, fe80::/10, ff00::/8.
    let [first, second, ..] = ip.segments();
    first & 0xe000 == 0x2000 && !(first == 0x2001 && second == 0x0db8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_networks_are_read_and_written() {
        for (text, written) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7/32", "203.0.113.7"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("2001:DB8::1", "2001:db8::1"),
            ("2001:db8::1/32", "2001:db8::/32"),
            (" ::1 ", "::1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(Network::parse(text).unwrap().to_string(), written, "{text}");
        }
        for text in
            ["", "203.0.113", "203.0.113.7/33", "203.0.113.7:80", "[::1]", "host", "::1/129"]
        {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_network_is_found_from_every_address_in_it() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("203.0.113.7", "::ffff:203.0.113.7", "203.0.113.8"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
        ] {
            let network = Network::parse(network).unwrap();
            assert!(network.contains(ip(inside)) && !network.contains(ip(outside)), "{network}");
            assert!(Network::around(ip(inside)).any(|around| around == network), "{network}");
            assert!(!Network::around(ip(outside)).any(|around| around == network), "{network}");
        }
        assert_eq!(Network::around(ip("1.2.3.4")).count(), 33);
        assert_eq!(Network::around(ip("::1")).count(), 129);
    }

    #[test]
    fn only_addresses_that_everybody_reaches_are_global() {
        for no in [
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.1",
            "172.16.3.4",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2002:c0a8:101::1",
        ] {
            assert!(!is_global(ip(no)), "{no}");
        }
        for yes in ["1.1.1.1", "100.128.0.1", "2606:4700::1", "::ffff:1.1.1.1", "2002:101:101::1"] {
            assert!(is_global(ip(yes)), "{yes}");
        }
    }
}
