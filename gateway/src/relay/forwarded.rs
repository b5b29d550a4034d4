//! Whose connection it is, when a reverse proxy stands in between.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    HeaderMap, Uri,
    header::{HOST, HeaderValue, ORIGIN},
};

use crate::protocol::{Network, OwnUrls};

/// Headers by which proxies tell of whom they speak for.
const FORWARDING: [&str; 3] = ["x-forwarded-for", "forwarded", "x-real-ip"];
/// By which a browser says from where a page asks (Fetch Metadata Request Headers).
const FETCH_SITE: &str = "sec-fetch-site";

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client {
    /// What limits and blocks count by. IPv4 inside IPv6 is IPv4.
    pub address: IpAddr,
    /// A program on this machine, and no proxy that speaks for somebody else.
    pub local: bool,
    /// A proxy of ours that does not say for whom it speaks.
    pub unnamed: bool,
}

impl Client {
    /// `peer` is the other end of the TCP connection. `X-Forwarded-For` counts only when that is one
    /// of `proxies`: its last address that is no proxy is the client, because everything before it
    /// was written by whoever the client is. A connection that any proxy announces is never local,
    /// nor is one from where a proxy of ours is: should that forget the header, the whole world would
    /// be.
    pub fn of(peer: IpAddr, headers: &HeaderMap, proxies: &[Network]) -> Self {
        let peer = peer.to_canonical();
        let is_proxy = |address: IpAddr| proxies.iter().any(|proxy| proxy.contains(address));
        if !FORWARDING.iter().any(|name| headers.contains_key(*name)) {
            let unnamed = is_proxy(peer);
            return Self { address: peer, local: peer.is_loopback() && !unnamed, unnamed };
        }
        let mut address = peer;
        if is_proxy(peer) {
            let lines: Vec<_> = headers.get_all(FORWARDING[0]).iter().collect();
            let hops = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|b| *b == b','));
            for hop in hops {
                // What cannot be read was not written by a proxy of ours: the last one answers for it.
                let Some(hop) = std::str::from_utf8(hop).ok().and_then(read) else { break };
                address = hop;
                if !is_proxy(hop) {
                    break;
                }
            }
        }
        Self { address, local: false, unnamed: false }
    }

    /// Whether it may read private topics without authenticating: a local program, but no web page
    /// unless it is one of `origins`.
    ///
    /// Every browser says which page opens a websocket (RFC 6455 §4.1), but not which one just asks
    /// for something. Then `Sec-Fetch-Site` tells that it is a page, and where browsers leave that
    /// out, the name in `Host`: somebody else's name that leads to this machine is a page's (DNS
    /// rebinding). `own` has the names of this relay.
    pub fn is_trusted(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        origins: &[String],
        own: &OwnUrls,
    ) -> bool {
        if !self.local {
            return false;
        }
        let is_listed = |page: &HeaderValue| origins.iter().any(|origin| page == origin.as_str());
        if headers.contains_key(ORIGIN) {
            return headers.get_all(ORIGIN).iter().all(is_listed);
        }
        let by_name = uri.authority().map(|authority| authority.as_str().as_bytes());
        let mut hosts = headers.get_all(HOST).iter().map(|host| host.as_bytes()).chain(by_name);
        headers.get_all(FETCH_SITE).iter().all(|site| site == "none")
            && hosts.all(|host| std::str::from_utf8(host).is_ok_and(|host| own.is_host(host)))
    }
}

/// An address as proxies write it, with or without a port.
fn read(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn seen(peer: &str, lines: &[(&'static str, &str)], proxies: &[&str]) -> (String, bool) {
        let proxies: Vec<_> = proxies.iter().map(|text| Network::parse(text).unwrap()).collect();
        let client = Client::of(peer.parse().unwrap(), &headers(lines), &proxies);
        (client.address.to_string(), client.local)
    }

    #[test]
    fn only_proxies_are_believed_and_only_what_they_wrote() {
        let proxies = ["127.0.0.1", "10.0.0.0/8", "2001:db8:ffff::/48"];
        const XFF: &str = "x-forwarded-for";
        for (peer, line, expected) in [
            ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
            // The client wrote the first one itself.
            ("127.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7"),
            ("127.0.0.1", "198.51.100.1,203.0.113.7 , 10.1.2.3", "203.0.113.7"),
            ("10.9.9.9", "[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:10.9.9.9", "::ffff:203.0.113.7", "203.0.113.7"),
            ("127.0.0.1", "203.0.113.7:80", "203.0.113.7"),
            // All proxies: the first of them asks for itself.
            ("127.0.0.1", "10.0.0.1, 10.0.0.2", "10.0.0.1"),
            ("127.0.0.1", "198.51.100.1, unknown", "127.0.0.1"),
            ("127.0.0.1", "unknown, 10.0.0.2", "10.0.0.2"),
            ("127.0.0.1", "", "127.0.0.1"),
            // Not proxies.
            ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
            ("::1", "198.51.100.1", "::1"),
            ("192.168.1.1", "127.0.0.1", "192.168.1.1"),
        ] {
            let found = seen(peer, &[(XFF, line)], &proxies);
            assert_eq!(found, (expected.to_owned(), false), "{peer} {line}");
        }
        let two = seen("127.0.0.1", &[(XFF, "198.51.100.1"), (XFF, "203.0.113.7")], &proxies);
        assert_eq!(two.0, "203.0.113.7", "the lines are one list");
    }

    #[test]
    fn local_is_only_what_nobody_forwarded() {
        assert_eq!(seen("127.0.0.1", &[], &[]), ("127.0.0.1".to_owned(), true));
        assert!(seen("::1", &[], &[]).1);
        // It may be the proxy without its header.
        assert_eq!(seen("127.0.0.1", &[], &["127.0.0.1"]), ("127.0.0.1".to_owned(), false));
        assert!(!seen("::ffff:127.0.0.1", &[], &["127.0.0.0/8"]).1);
        assert!(seen("127.0.0.2", &[], &["127.0.0.1"]).1, "not from where the proxy is");
        assert!(!seen("192.168.1.2", &[], &["192.168.1.2"]).1);
        for header in FORWARDING {
            // Also from a proxy that nobody configured, and when it claims to speak for loopback.
            assert!(!seen("127.0.0.1", &[(header, "127.0.0.1")], &[]).1, "{header}");
            assert!(!seen("127.0.0.1", &[(header, "127.0.0.1")], &["127.0.0.1"]).1, "{header}");
        }
    }

    #[test]
    fn web_pages_are_trusted_when_they_are_listed() {
        let address = "127.0.0.1".parse().unwrap();
        let local = Client { address, local: true, unnamed: false };
        let origins = ["https://client.example.org".to_owned()];
        let trusted = |client: &Client, lines: &[(&'static str, &str)]| {
            client.is_trusted(&Uri::from_static("/"), &headers(lines), &origins, &own())
        };
        assert!(trusted(&local, &[]));
        assert!(trusted(&local, &[("origin", "https://client.example.org")]));
        for page in ["https://evil.example", "null", "", "https://client.example.org.evil.example"]
        {
            assert!(!trusted(&local, &[("origin", page)]), "{page}");
        }
        let both = [("origin", "https://client.example.org"), ("origin", "https://evil.example")];
        assert!(!trusted(&local, &both));
        let remote = Client { local: false, ..local };
        assert!(!trusted(&remote, &[]));
        assert!(!trusted(&remote, &[("origin", "https://client.example.org")]));
    }

    fn own() -> OwnUrls {
        OwnUrls::new(["wss://relay.example.org", "ws://127.0.0.1:4869"])
    }

    #[test]
    fn web_pages_that_do_not_say_who_they_are_are_not_trusted() {
        let local = Client { address: "127.0.0.1".parse().unwrap(), local: true, unnamed: false };
        let origins = ["https://client.example.org".to_owned()];
        let asks = |uri: &'static str, lines: &[(&'static str, &str)]| {
            local.is_trusted(&Uri::from_static(uri), &headers(lines), &origins, &own())
        };
        // Typed by the user, or asked by something that is no browser.
        assert!(asks("/", &[("sec-fetch-site", "none")]));
        for site in ["cross-site", "same-site", "same-origin", "", "?"] {
            assert!(!asks("/", &[("sec-fetch-site", site)]), "{site}");
            let named = [("sec-fetch-site", site), ("origin", "https://client.example.org")];
            assert!(asks("/", &named), "a listed page may be on another site: {site}");
        }
        assert!(!asks("/", &[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")]));
        for host in [
            "127.0.0.1:4869",
            "127.0.0.1",
            "localhost:4869",
            "LOCALHOST.",
            "[::1]:4869",
            "192.168.1.2:80",
            "relay.example.org",
            "Relay.Example.org:8443",
        ] {
            assert!(asks("/", &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example:4869",
            "localhost.evil.example",
            "127.0.0.1.evil.example:4869",
            "relay.example.org.evil.example",
            "relay.example.org@evil.example",
            "[evil]",
            "",
        ] {
            assert!(!asks("/", &[("host", host)]), "{host}");
            assert!(!asks("/", &[("host", "127.0.0.1:4869"), ("host", host)]), "{host}");
        }
        // The name of the request line is the one that counts, where there is one.
        assert!(!asks("http://evil.example/", &[("host", "127.0.0.1:4869")]));
        assert!(asks("http://127.0.0.1:4869/", &[("host", "127.0.0.1:4869")]));
    }
}
