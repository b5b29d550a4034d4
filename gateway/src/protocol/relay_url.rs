//! The URLs of relays: one form for each, and those under which a relay knows itself, for events that
//! name one (NIP-42, NIP-62).

use url::{Host, Url};

/// The one form of a relay's URL by which it is told from others: scheme and host in small letters, no
/// default port, no fragment, no slash at the end. `None` for what is no `ws://` or `wss://` URL, and for
/// one with a user or password: they do not belong into a log.
pub fn normal_url(url: &str) -> Option<String> {
    let mut url = Url::parse(url.trim()).ok()?;
    if !matches!(url.scheme(), "ws" | "wss")
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return None;
    }
    url.set_fragment(None);
    let host = url.host_str()?;
    if let Some(bare) = host.strip_suffix('.') {
        let bare = bare.to_owned();
        url.set_host(Some(&bare)).ok()?;
    }
    Some(match url.query() {
        None => url.as_str().trim_end_matches('/').to_owned(),
        Some(_) => url.into(),
    })
}

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
    fn a_relay_has_one_form() {
        for (written, normal) in [
            ("WSS://Relay.Example.ORG:443/", "wss://relay.example.org"),
            ("ws://relay.example.org.:80", "ws://relay.example.org"),
            (" wss://relay.example.org/Path//#top", "wss://relay.example.org/Path"),
            ("wss://relay.example.org:8443/?a=b/", "wss://relay.example.org:8443/?a=b/"),
            ("ws://[::1]:7777", "ws://[::1]:7777"),
        ] {
            let once = normal_url(written);
            assert_eq!(once.as_deref(), Some(normal));
            assert_eq!(normal_url(normal), once);
        }
        for none in ["https://a.org", "wss://", "relay", "wss://me:secret@a.org", "wss://me@a.org"]
        {
            assert_eq!(normal_url(none), None, "{none}");
        }
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
