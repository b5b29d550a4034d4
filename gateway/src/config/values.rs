//! Checks of single values: addresses, URLs, names. The answer of a failed one names the value and
//! says how to write it.

use std::net::SocketAddr;

use crate::protocol::{Network, PublicKey, TopicName};

/// Why a text is not what it should be, as a sentence that continues after `key:`.
pub(super) type Check = fn(&str) -> Result<(), String>;

fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

pub(super) fn any(_: &str) -> Result<(), String> {
    Ok(())
}

pub(super) fn address(text: &str) -> Result<(), String> {
    require(text.parse::<SocketAddr>().is_ok(), || {
        format!("{text:?} is not an address with a port; write it like 127.0.0.1:4869")
    })
}

pub(super) fn address_with_port(text: &str) -> Result<(), String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(()),
        Ok(_) => Err(format!("{text:?} has port 0, at which nobody can be reached")),
        Err(_) => {
            Err(format!("{text:?} is not an address with a port; write it like 203.0.113.7:4433"))
        }
    }
}

pub(super) fn host_and_port(text: &str) -> Result<(), String> {
    let ok = text.rsplit_once(':').is_some_and(|(host, port)| {
        // Url knows which texts are host names, and that IPv6 addresses stand in brackets.
        let host_only = url::Host::parse(host).is_ok();
        host_only && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    require(ok, || {
        format!("{text:?} is not a host with a port; write it like router.example.org:6881")
    })
}

pub(super) fn http_url(text: &str) -> Result<(), String> {
    require(is_url(text, &["http", "https"]), || {
        format!("{text:?} is not an http:// or https:// URL")
    })
}

pub(super) fn http_url_or_empty(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    http_url(text).map_err(|error| format!("{error}; leave it empty (\"\") for none"))
}

pub(super) fn websocket_url(text: &str) -> Result<(), String> {
    require(is_url(text, &["ws", "wss"]), || {
        format!("{text:?} is not the URL of a relay; write it like wss://relay.example.org")
    })
}

/// What names a password would be shown wherever the relay is.
pub(super) fn upstream_url(text: &str) -> Result<(), String> {
    websocket_url(text)?;
    // The text is not repeated: it may hold a password.
    require(crate::protocol::normal_url(text).is_some(), || {
        "a relay's URL has no user and no password; relays know the gateway by its key (auth = true, \
         NIP-42)"
            .to_owned()
    })
}

pub(super) fn history(text: &str) -> Result<(), String> {
    text.parse::<crate::upstream::config::History>().map(drop).map_err(|error| error.to_string())
}

pub(super) fn plugin_id(text: &str) -> Result<(), String> {
    require(crate::plugins::manifest::is_id(text), || {
        format!("{text:?} is not the id of a plugin; `nostr-gateway plugin list` has them")
    })
}

pub(super) fn websocket_url_or_empty(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    websocket_url(text).map_err(|error| format!("{error}; leave it empty (\"\") for none"))
}

/// An origin as browsers write it: scheme, host and port, nothing after them (RFC 6454).
pub(super) fn origin(text: &str) -> Result<(), String> {
    let ok = url::Url::parse(text)
        .is_ok_and(|url| url.has_host() && url.origin().ascii_serialization() == text);
    require(ok, || format!("{text:?} is not an origin; write it like https://client.example.org"))
}

pub(super) fn public_key(text: &str) -> Result<(), String> {
    require(PublicKey::from_text(text).is_some(), || {
        format!("{text:?} is not a public key; write 64 hexadecimal digits or npub1…")
    })
}

pub(super) fn public_key_or_empty(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    public_key(text).map_err(|error| format!("{error}; leave it empty (\"\") for none"))
}

pub(super) fn network(text: &str) -> Result<(), String> {
    require(Network::parse(text).is_some(), || {
        format!("{text:?} is neither an IP address nor a network; write it like 10.0.0.0/8")
    })
}

pub(super) fn access_rule(text: &str) -> Result<(), String> {
    word::<crate::relay::config::AccessRule>(text)
}

fn is_url(text: &str, schemes: &[&str]) -> bool {
    // For these schemes the url crate refuses an empty host.
    url::Url::parse(text).is_ok_and(|url| schemes.contains(&url.scheme()) && url.has_host())
}

pub(super) fn mdns_service(text: &str) -> Result<(), String> {
    let clean = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    // It becomes a DNS label of at most 63 bytes, with a "_" in front.
    require((1..=62).contains(&text.len()) && text.bytes().all(clean), || {
        format!("{text:?} is not a service name: 1 to 62 of the characters a-z, 0-9 and \"-\"")
    })
}

pub(super) fn upstream_name(text: &str) -> Result<(), String> {
    require((1..=64).contains(&text.len()) && text.bytes().all(in_upstream_name), || {
        format!(
            "{text:?} is not a stream name: 1 to 64 of the characters a-z, 0-9, \".\", \"_\" and \"-\""
        )
    })
}

pub(super) fn in_upstream_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
}

pub(super) fn topic(text: &str) -> Result<(), String> {
    TopicName::new(text).map(|_| ()).map_err(|error| format!("{text:?}: {error}"))
}

pub(super) fn topic_or_empty(text: &str) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { topic(text) }
}

pub(super) fn peer(text: &str) -> Result<(), String> {
    let (id, address) = match text.split_once('@') {
        Some((id, address)) => (id, Some(address)),
        None => (text, None),
    };
    require(is_endpoint_id(id), || {
        format!(
            "{text:?} does not begin with an endpoint id: 64 lowercase hex digits, optionally followed by @IP:PORT"
        )
    })?;
    address.map_or(Ok(()), address_with_port)
}

/// Whether the text is an Ed25519 public key as iroh writes it.
fn is_endpoint_id(text: &str) -> bool {
    let Ok(bytes) = data_encoding::HEXLOWER.decode(text.as_bytes()) else { return false };
    <[u8; 32]>::try_from(bytes)
        .is_ok_and(|bytes| ed25519_dalek::VerifyingKey::from_bytes(&bytes).is_ok())
}

pub(super) fn direction(text: &str) -> Result<(), String> {
    // Asking the type means that a new direction needs no change here.
    word::<crate::upstream::config::Direction>(text)
}

pub(super) fn durability(text: &str) -> Result<(), String> {
    word::<crate::store::config::Durability>(text)
}

pub(super) fn secret_store(text: &str) -> Result<(), String> {
    word::<crate::secrets::config::StoreChoice>(text)
}

/// The path of a file with a key. The key itself must not stand there, and is not repeated.
pub(super) fn key_file(text: &str) -> Result<(), String> {
    require(!text.contains("AGE-SECRET-KEY-"), || {
        "this is a key; write it into a file that you alone can read, and the path of that file here"
            .to_owned()
    })
}

fn word<'de, T: serde::Deserialize<'de>>(text: &str) -> Result<(), String> {
    let value = figment::value::Value::from(text);
    match value.deserialize::<T>() {
        Ok(_) => Ok(()),
        Err(figment::Error { kind: figment::error::Kind::UnknownVariant(_, words), .. }) => {
            let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
            Err(format!("{text:?} is not one of: {}", words.join(", ")))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn peers_are_endpoint_ids_with_or_without_an_address() {
        assert_eq!(peer(ID), Ok(()));
        assert_eq!(peer(&format!("{ID}@192.0.2.1:4433")), Ok(()));
        assert_eq!(peer(&format!("{ID}@[2001:db8::1]:4433")), Ok(()));
        assert!(peer(&format!("{ID}@192.0.2.1")).is_err());
        assert!(peer(&format!("{ID}@192.0.2.1:0")).is_err());
        assert!(peer(&ID.to_uppercase()).is_err());
        assert!(peer(&format!("02{}", "0".repeat(62))).is_err(), "not a point on the curve");
    }

    #[test]
    fn a_service_name_leaves_room_for_the_underscore_of_its_label() {
        assert_eq!(mdns_service("nostr-gateway"), Ok(()));
        assert_eq!(mdns_service(&"a".repeat(62)), Ok(()));
        assert!(mdns_service(&"a".repeat(63)).is_err() && mdns_service("").is_err());
    }

    #[test]
    fn hosts_have_ports_and_urls_have_hosts() {
        for good in ["router.example.org:6881", "192.0.2.1:1", "[::1]:6881"] {
            assert_eq!(host_and_port(good), Ok(()), "{good}");
        }
        for bad in ["router.example.org", ":6881", "host:0", "host:66000", "::1:6881", "a b:1"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
        assert_eq!(websocket_url("ws://127.0.0.1:7777/path"), Ok(()));
        for bad in ["https://relay.example.org", "wss://", "relay.example.org", ""] {
            assert!(websocket_url(bad).is_err(), "{bad}");
        }
        assert_eq!(http_url_or_empty(""), Ok(()));
        assert!(http_url_or_empty("ftp://example.org").is_err());
    }
}
