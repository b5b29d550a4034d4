//! Peers named in the configuration.

use std::net::SocketAddr;

use iroh::{EndpointAddr, EndpointId, address_lookup::memory::MemoryLookup};

use super::GossipError;

/// One entry of `discovery.peers`: an endpoint id, or `ID@IP:PORT`.
pub fn parse(text: &str) -> Result<EndpointAddr, GossipError> {
    let wrong = |what: &str| GossipError::Setting {
        setting: "discovery.peers",
        reason: format!("{text:?}: {what}; write an endpoint id, or ID@IP:PORT"),
    };
    let (id, address) = match text.split_once('@') {
        Some((id, address)) => (id, Some(address)),
        None => (text, None),
    };
    let id: EndpointId = id.parse().map_err(|_| wrong("this is no endpoint id"))?;
    match address {
        None => Ok(EndpointAddr::new(id)),
        Some(address) => {
            let address: SocketAddr =
                address.parse().map_err(|_| wrong("after the @ comes an IP address and a port"))?;
            Ok(EndpointAddr::new(id).with_ip_addr(address))
        }
    }
}

/// All entries: their ids, and what is known of their addresses.
///
/// # Errors
/// At the first entry that is malformed.
pub fn parse_all(texts: &[String]) -> Result<(Vec<EndpointId>, MemoryLookup), GossipError> {
    let lookup = MemoryLookup::with_provenance("configured");
    let mut ids = Vec::new();
    for text in texts {
        let peer = parse(text)?;
        if !ids.contains(&peer.id) {
            ids.push(peer.id);
        }
        if !peer.is_empty() {
            lookup.add_endpoint_info(peer);
        }
    }
    Ok((ids, lookup))
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    #[test]
    fn a_peer_is_an_id_with_or_without_an_address() {
        let id = SecretKey::from_bytes(&[7; 32]).public();
        assert_eq!(parse(&id.to_string()).unwrap(), EndpointAddr::new(id));
        let with_address = parse(&format!("{id}@127.0.0.1:4000")).unwrap();
        assert_eq!(with_address.ip_addrs().count(), 1);
        let (ids, lookup) =
            parse_all(&[id.to_string(), format!("{id}@[::1]:4000"), format!("{id}@1.2.3.4:5")])
                .unwrap();
        assert_eq!(ids, [id]);
        assert_eq!(lookup.get_endpoint_info(id).unwrap().ip_addrs().count(), 2);
    }

    #[test]
    fn a_malformed_peer_is_named() {
        let id = SecretKey::from_bytes(&[7; 32]).public();
        for bad in ["", "abc", "abc@1.2.3.4:5", &format!("{id}@"), &format!("{id}@host:5")] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("discovery.peers: "), "{error}");
        }
    }
}
