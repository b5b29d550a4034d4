//! The URLs under which a relay knows itself, for events that name one (NIP-42, NIP-62).

use url::{Host, Url};

/// A relay's own URLs.
#[derive(Debug, Clone, Default)]
pub struct OwnUrls(Vec<(String, u16)>);

impl OwnUrls {
    /// Texts that are no websocket URLs are left out.
    pub fn new<'a>(urls: impl IntoIterator<Item = &'a str>) -> Self {
        Self(urls.into_iter().filter_map(place).collect())
    }

    /// The same and one more.
    pub fn and(mut self, url: &str) -> Self {
        self.0.extend(place(url));
        self
    }

    /// Whether the URL leads here: the same host and port. NIP-42 asks for no more than that.
    pub fn contains(&self, url: &str) -> bool {
        place(url).is_some_and(|place| self.0.contains(&place))
    }

    /// The same for somebody on another machine, to whom a loopback URL means their own.
    pub fn contains_from_elsewhere(&self, url: &str) -> bool {
        place(url).is_some_and(|place| !is_loopback(&place.0) && self.0.contains(&place))
    }

    /// Whether a client that wrote this into `Host` asked for a name of this relay, or for an address:
    /// nobody else can let that lead here. The port does not matter.
    pub fn is_host(&self, authority: &str) -> bool {
        let Ok(url) = Url::parse(&format!("ws://{authority}")) else { return false };
        let is_plain = url.username().is_empty() && url.password().is_none();
        let is_plain = is_plain && url.path() == "/" && url.query().or(url.fragment()).is_none();
        let is_own = |host: &str| {
            let host = host.trim_end_matches('.');
            is_loopback(host) || self.0.iter().any(|(own, _)| own == host)
        };
        is_plain
            && match url.host() {
                Some(Host::Ipv4(_) | Host::Ipv6(_)) => true,
                Some(Host::Domain(name)) => is_own(name),
                None => false,
            }
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Host and port of a websocket URL.
fn place(url: &str) -> Option<(String, u16)> {
    let url = Url::parse(url.trim()).ok()?;
    let default = match url.scheme() {
        "ws" => 80,
        "wss" => 443,
        _ => return None,
    };
    let host = url.host_str()?.trim_end_matches('.').to_ascii_lowercase();
    Some((host, url.port().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_urls_mean_nothing_from_elsewhere() {
        let urls = ["ws://127.0.0.1:4869", "ws://localhost:4869", "ws://[::1]:4869", "wss://a.org"];
        let own = OwnUrls::new(urls);
        assert!(urls.iter().all(|url| own.contains(url)));
        let counting: Vec<_> = urls.iter().filter(|url| own.contains_from_elsewhere(url)).collect();
        assert_eq!(counting, [&"wss://a.org"]);
    }

    #[test]
    fn host_and_port_decide() {
        let own = OwnUrls::new(["wss://Relay.Example.org", "ws://127.0.0.1:4869"]);
        for yes in [
            "wss://relay.example.org/",
            "wss://relay.example.org:443/path",
            "ws://127.0.0.1:4869/",
            "wss://relay.example.org.",
        ] {
            assert!(own.contains(yes), "{yes}");
        }
        for no in [
            "ws://relay.example.org",
            "wss://relay.example.org.evil.net",
            "wss://evil.net/relay.example.org",
            "wss://relay.example.org@evil.net",
            "https://relay.example.org",
            "ws://127.0.0.1",
            "",
        ] {
            assert!(!own.contains(no), "{no}");
        }
    }
}
