//! Relay URLs that strangers wrote into their lists: brought into one form, or refused.

use std::{fmt, sync::Arc};

use url::{Host, Url};

use crate::protocol::{OwnUrls, is_global, normal_url};

/// The longest URL that is looked at, in bytes.
const MAX_URL: usize = 255;

/// Names that lead nowhere but into one's own network, or nowhere at all (RFC 6761, RFC 6762, RFC 8375,
/// and what routers and companies use).
const LOCAL_DOMAINS: &[&str] = &[
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
    "test",
    "invalid",
];

/// Networks that are entered by a proxy of their own.
const HIDDEN_DOMAINS: &[&str] = &["onion", "i2p"];

/// A relay's URL, checked and in its normal form: equal addresses are one relay. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

/// Why the URL of a list is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unusable {
    TooLong,
    /// No websocket URL with a host.
    Malformed,
    /// It carries a name or a password.
    Credentials,
    /// It leads into a private network or to the reader's own machine.
    Private,
    /// An `.onion` or `.i2p` name.
    Hidden,
    /// A port on which other services than the web listen.
    Port,
    /// It is this gateway.
    Own,
}

impl Unusable {
    /// For status: what was wrong with it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too long",
            Self::Malformed => "no relay URL",
            Self::Credentials => "with credentials",
            Self::Private => "private address",
            Self::Hidden => "hidden service",
            Self::Port => "port of another service",
            Self::Own => "this gateway itself",
        }
    }
}

/// What the URLs of lists must be like.
#[derive(Debug, Clone, Default)]
pub struct AddressRules {
    /// Private, loopback and local addresses are used too: `allow_private_relays`.
    pub private: bool,
    /// Names of hidden services are used too: `allow_onion_relays`.
    pub hidden: bool,
    /// The URLs of this gateway's own relay.
    pub own: OwnUrls,
}

impl AddressRules {
    /// Reads what somebody wrote. A name that turns out to lead to a private address is for whoever
    /// resolves it to refuse.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn read(&self, text: &str) -> Result<Address, Unusable> {
        let text = text.trim();
        if text.len() > MAX_URL {
            return Err(Unusable::TooLong);
        }
        let url = Url::parse(text).map_err(|_| Unusable::Malformed)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Unusable::Credentials);
        }
        let form = normal_url(text).ok_or(Unusable::Malformed)?;
        // Escapes may have made it longer.
        if form.len() > MAX_URL {
            return Err(Unusable::TooLong);
        }
        let url = Url::parse(&form).map_err(|_| Unusable::Malformed)?;
        self.check_host(&url)?;
        let port = url.port_or_known_default().ok_or(Unusable::Malformed)?;
        if !self.private && port < 1_024 && !matches!(port, 80 | 443) {
            return Err(Unusable::Port);
        }
        if self.own.contains(&form) {
            return Err(Unusable::Own);
        }
        Ok(Address(form.into()))
    }

    fn check_host(&self, url: &Url) -> Result<(), Unusable> {
        let global = match url.host() {
            Some(Host::Ipv4(ip)) => is_global(ip.into()),
            Some(Host::Ipv6(ip)) => is_global(ip.into()),
            Some(Host::Domain(name)) => {
                if is_under(name, HIDDEN_DOMAINS) {
                    return if self.hidden { Ok(()) } else { Err(Unusable::Hidden) };
                }
                if name.is_empty() || name.split('.').any(str::is_empty) {
                    return Err(Unusable::Malformed);
                }
                // A name without a dot is looked up in the domain of this machine.
                name.contains('.') && !is_under(name, LOCAL_DOMAINS)
            }
            None => return Err(Unusable::Malformed),
        };
        if global || self.private { Ok(()) } else { Err(Unusable::Private) }
    }
}

fn is_under(name: &str, domains: &[&str]) -> bool {
    domains.iter().any(|domain| {
        name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

impl Address {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// Whether the connection is encrypted.
    pub fn is_secure(&self) -> bool {
        self.0.starts_with("wss:")
    }

    /// The host alone, by which relays are counted.
    pub fn host(&self) -> &str {
        let rest = self.0.split_once("://").map_or(&*self.0, |(_, rest)| rest);
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        match authority.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or(v6),
            None => authority.split(':').next().unwrap_or(authority),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, Unusable> {
        AddressRules::default().read(text).map(|address| address.to_string())
    }

    #[test]
    fn one_relay_has_one_form() {
        for (text, form) in [
            ("wss://Relay.Example.org", "wss://relay.example.org"),
            (" wss://relay.example.org/ ", "wss://relay.example.org"),
            ("wss://relay.example.org:443", "wss://relay.example.org"),
            ("wss://relay.example.org.", "wss://relay.example.org"),
            ("wss://relay.example.org/#top", "wss://relay.example.org"),
            ("WSS://relay.example.org:4430/", "wss://relay.example.org:4430"),
            ("ws://relay.example.org:80/", "ws://relay.example.org"),
            ("wss://relay.example.org/inbox", "wss://relay.example.org/inbox"),
            ("wss://relay.example.org/?a=b", "wss://relay.example.org/?a=b"),
            ("wss://1.1.1.1", "wss://1.1.1.1"),
            ("wss://[2606:4700::1]:8080", "wss://[2606:4700::1]:8080"),
            ("wss://пример.рф", "wss://xn--e1afmkfd.xn--p1ai"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(form), "{text}");
        }
    }

    #[test]
    fn what_strangers_may_not_make_us_open_is_refused() {
        use Unusable::{Credentials, Hidden, Malformed, Port, Private, TooLong};
        let long = format!("wss://relay.example.org/{}", "a".repeat(MAX_URL));
        // Each umlaut becomes six bytes.
        let grows = format!("wss://relay.example.org/{}", "ü".repeat(100));
        for (text, why) in [
            ("", Malformed),
            ("relay.example.org", Malformed),
            ("https://relay.example.org", Malformed),
            ("wss://", Malformed),
            ("wss://relay.example.org wss://other.example.org", Malformed),
            ("wss://.example.org", Malformed),
            ("wss://a..example.org", Malformed),
            ("wss://https://relay.example.org", Private),
            ("wss://relay.example.org@evil.example.org", Credentials),
            ("wss://a:b@relay.example.org", Credentials),
            ("ws://127.0.0.1:4869", Private),
            ("ws://localhost:4869", Private),
            ("ws://LOCALHOST.:4869", Private),
            ("ws://2130706433", Private),
            ("ws://0x7f.1", Private),
            ("ws://[::1]", Private),
            ("ws://[::ffff:127.0.0.1]", Private),
            ("ws://192.168.1.1", Private),
            ("ws://169.254.169.254", Private),
            ("ws://umbrel.local:4848", Private),
            ("ws://nas.home.arpa", Private),
            ("ws://relay", Private),
            ("ws://abcdefghijklmnop.onion", Hidden),
            ("wss://relay.example.org:22", Port),
            ("wss://relay.example.org:25", Port),
            (&long, TooLong),
            (&grows, TooLong),
        ] {
            assert_eq!(read(text), Err(why), "{text}");
        }
    }

    #[test]
    fn the_operator_may_allow_more_but_never_itself() {
        let own = OwnUrls::new(["ws://127.0.0.1:4869", "wss://gateway.example.org"]);
        let rules = AddressRules { private: true, hidden: true, own };
        for text in ["ws://127.0.0.1:7777", "ws://relay:88", "ws://abcdefghijklmnop.onion"] {
            assert_eq!(rules.read(text).map(|address| address.to_string()), Ok(text.to_owned()));
        }
        for text in ["ws://127.0.0.1:4869/", "wss://gateway.example.org/topic/x"] {
            assert_eq!(rules.read(text), Err(Unusable::Own), "{text}");
        }
    }

    #[test]
    fn hosts_are_told_apart() {
        for (text, host) in [
            ("wss://relay.example.org:4430/a", "relay.example.org"),
            ("wss://relay.example.org/?a=b:c", "relay.example.org"),
            ("wss://[2606:4700::1]:8080", "2606:4700::1"),
        ] {
            assert_eq!(AddressRules::default().read(text).unwrap().host(), host);
        }
    }
}
