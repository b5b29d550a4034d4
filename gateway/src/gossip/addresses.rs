//! Which of our addresses may be told to whom.

use std::borrow::Cow;

use iroh::{TransportAddr, address_lookup::AddrFilter};

use crate::protocol::is_global;

/// What is published where the whole world can read it: the Mainline DHT and a pkarr relay.
///
/// URLs of iroh relays always; IP addresses only when they are reachable from anywhere, unless
/// `private_too` (`discovery.dht_private_addresses`) says that this DHT is one's own. Addresses of
/// private ranges are of no use to strangers and tell them how a network is built.
pub fn filter(private_too: bool) -> AddrFilter {
    if private_too {
        return AddrFilter::unfiltered();
    }
    AddrFilter::new(|addresses| {
        Cow::Owned(addresses.iter().filter(|address| may_be_public(address)).cloned().collect())
    })
}

fn may_be_public(address: &TransportAddr) -> bool {
    match address {
        TransportAddr::Relay(_) => true,
        TransportAddr::Ip(address) => is_global(address.ip()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(private_too: bool, addresses: &[&str]) -> Vec<String> {
        let all: Vec<_> = addresses
            .iter()
            .map(|text| match text.parse() {
                Ok(address) => TransportAddr::Ip(address),
                Err(_) => TransportAddr::Relay(text.parse().unwrap()),
            })
            .collect();
        let kept = filter(private_too).apply(&all).into_owned();
        addresses
            .iter()
            .zip(&all)
            .filter(|(_, address)| kept.contains(address))
            .map(|(text, _)| (*text).to_owned())
            .collect()
    }

    const PRIVATE: &[&str] = &[
        "10.1.2.3:1",
        "172.16.0.1:1",
        "192.168.1.1:1",
        "127.0.0.1:1",
        "169.254.1.1:1",
        "100.64.0.1:1",
        "100.127.255.254:1",
        "0.0.0.0:1",
        "192.0.0.8:1",
        "198.19.0.1:1",
        "224.0.0.251:1",
        "255.255.255.255:1",
        "[::1]:1",
        "[::]:1",
        "[fe80::1]:1",
        "[fd00::1]:1",
        "[fc00::1]:1",
        "[ff02::fb]:1",
        "[2001:db8::1]:1",
        "[::ffff:10.0.0.1]:1",
    ];
    const PUBLIC: &[&str] = &[
        "1.1.1.1:1",
        "100.63.0.1:1",
        "100.128.0.1:1",
        "172.32.0.1:1",
        "[2606:4700::1]:1",
        "https://relay.example/",
    ];

    #[test]
    fn private_addresses_stay_out_of_the_dht() {
        assert_eq!(kept(false, PRIVATE), Vec::<String>::new());
        assert_eq!(kept(false, PUBLIC), PUBLIC);
    }

    #[test]
    fn a_dht_of_ones_own_takes_all() {
        assert_eq!(kept(true, PRIVATE), PRIVATE);
        assert_eq!(kept(true, PUBLIC), PUBLIC);
    }
}
