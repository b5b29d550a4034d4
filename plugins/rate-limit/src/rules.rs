//! Who is counted under what, without the gateway.

use std::{collections::HashSet, net::IpAddr};

use nostr_gateway_plugin::{Context, Event};

use crate::bucket::Limit;

/// The digits of a public key that stand in a key: enough that nobody finds another with the same.
const DIGITS: usize = 32;

/// `[config]`.
pub struct Settings {
    pub per_author: Option<Limit>,
    pub per_address: Option<Limit>,
    pub exempt_kinds: Vec<u16>,
    pub exempt_authors: Vec<String>,
}

/// Whom to limit, and how.
pub struct Rules {
    per_author: Option<Limit>,
    per_address: Option<Limit>,
    exempt_kinds: HashSet<u16>,
    exempt_authors: HashSet<String>,
}

/// What is to be remembered of an event that is let through.
#[derive(Debug, PartialEq)]
pub struct Charge {
    pub key: String,
    pub value: Vec<u8>,
    pub ttl: u64,
}

impl Rules {
    /// # Errors
    /// The text names the setting that is wrong.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let Settings { per_author, per_address, exempt_kinds, exempt_authors } = settings;
        for (name, limit) in [("per_author", &per_author), ("per_address", &per_address)] {
            if let Some(limit) = limit {
                limit.check().map_err(|why| format!("config.{name}.{why}"))?;
            }
        }
        let is_key =
            |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(index) = exempt_authors.iter().position(|author| !is_key(author)) {
            return Err(format!(
                "config.exempt_authors[{index}]: want a public key of 64 hexadecimal digits"
            ));
        }
        Ok(Self {
            per_author,
            per_address,
            exempt_kinds: exempt_kinds.into_iter().collect(),
            exempt_authors: exempt_authors.iter().map(|author| author.to_lowercase()).collect(),
        })
    }

    /// What an event costs. `held` is what is remembered under a key.
    ///
    /// # Errors
    /// What the sender is told, when there were too many.
    pub fn charges(
        &self,
        event: &Event,
        context: &Context,
        held: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<Vec<Charge>, String> {
        if self.exempt_kinds.contains(&event.kind) || self.exempt_authors.contains(&event.pubkey) {
            return Ok(Vec::new());
        }
        let author = event.pubkey.get(..DIGITS).map(|digits| format!("a{digits}"));
        let address = context.address.as_deref().and_then(key_of_address);
        let limits = [
            (self.per_address.as_ref().zip(address), "this address"),
            (self.per_author.as_ref().zip(author), "this author"),
        ];
        let mut charges = Vec::new();
        // Nothing is charged for what another limit refuses.
        for (limit, of) in limits {
            let Some((limit, key)) = limit else { continue };
            let full_at =
                held(&key).and_then(|value| Some(u64::from_be_bytes(value.try_into().ok()?)));
            let filling = limit.take(full_at, context.received_at).map_err(|wait| {
                format!("rate-limited: too many events of {of}; try again in {wait} s")
            })?;
            let value = filling.full_at.to_be_bytes().to_vec();
            charges.push(Charge { key, value, ttl: filling.ttl });
        }
        Ok(charges)
    }
}

/// An address of IPv4, and of IPv6 the network of 64 bits: whoever has one of its addresses has all.
fn key_of_address(text: &str) -> Option<String> {
    match text.parse().ok()? {
        IpAddr::V4(address) => Some(format!("4{address}")),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Some(format!("6{a:x}:{b:x}:{c:x}:{d:x}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashMap};

    use nostr_gateway_plugin::{Direction, Origin, OriginKind};

    use super::*;

    fn event(pubkey: &str, kind: u16) -> Event {
        Event {
            id: String::new(),
            pubkey: pubkey.to_owned(),
            created_at: 1,
            kind,
            tags: Vec::new(),
            content: String::new(),
            sig: String::new(),
        }
    }

    fn from(address: Option<&str>) -> Context {
        let kind = if address.is_some() { OriginKind::Client } else { OriginKind::Gossip };
        Context {
            direction: Direction::In,
            origin: Origin { kind, detail: String::new() },
            topics: Vec::new(),
            authenticated: Vec::new(),
            address: address.map(str::to_owned),
            received_at: 1_700_000_000,
        }
    }

    /// Rules with a memory.
    struct Limited {
        rules: Rules,
        held: RefCell<HashMap<String, Vec<u8>>>,
    }

    impl Limited {
        fn new(per_author: Option<u32>, per_address: Option<u32>) -> Self {
            let limit = |burst: Option<u32>| burst.map(|burst| Limit { per_minute: 1.0, burst });
            let rules = Rules::new(Settings {
                per_author: limit(per_author),
                per_address: limit(per_address),
                exempt_kinds: vec![7],
                exempt_authors: vec!["EE".repeat(32)],
            });
            Self { rules: rules.unwrap(), held: RefCell::default() }
        }

        fn ask(&self, event: &Event, context: &Context) -> Result<(), String> {
            let charges =
                self.rules.charges(event, context, |key| self.held.borrow().get(key).cloned())?;
            for Charge { key, value, ttl } in charges {
                assert!(ttl > 0 && key.len() < 40);
                self.held.borrow_mut().insert(key, value);
            }
            Ok(())
        }

        /// How many of twenty events of this author and address pass.
        fn pass(&self, pubkey: &str, address: Option<&str>) -> usize {
            let (event, context) = (event(pubkey, 1), from(address));
            (0..20).filter(|_| self.ask(&event, &context).is_ok()).count()
        }
    }

    #[test]
    fn authors_and_addresses_are_counted_apart() {
        let limited = Limited::new(Some(3), Some(5));
        let [alice, bob, carol] = ["aa", "bb", "cc"].map(|pair| pair.repeat(32));
        let here = Some("192.0.2.1");
        assert_eq!(limited.pass(&alice, here), 3);
        assert_eq!(limited.pass(&bob, here), 2, "what is left of the address's five");
        assert_eq!(limited.pass(&carol, here), 0);
        let told = limited.ask(&event(&carol, 1), &from(here)).unwrap_err();
        assert_eq!(told, "rate-limited: too many events of this address; try again in 60 s");
        assert_eq!(limited.pass(&carol, Some("192.0.2.2")), 3, "for the refused nobody paid");
        let told = limited.ask(&event(&carol, 1), &from(Some("192.0.2.2"))).unwrap_err();
        assert_eq!(told, "rate-limited: too many events of this author; try again in 60 s");
        assert_eq!(limited.pass(&alice, None), 0, "by whatever way they come");
    }

    #[test]
    fn what_is_exempt_costs_nothing() {
        let limited = Limited::new(Some(1), Some(1));
        let here = Some("192.0.2.1");
        assert_eq!(limited.pass(&"ee".repeat(32), here), 20);
        let reaction = event(&"aa".repeat(32), 7);
        assert!((0..9).all(|_| limited.ask(&reaction, &from(here)).is_ok()));
        assert_eq!(limited.pass(&"aa".repeat(32), here), 1);
    }

    #[test]
    fn each_limit_may_be_absent() {
        let here = Some("192.0.2.1");
        assert_eq!(Limited::new(None, Some(2)).pass(&"aa".repeat(32), None), 20);
        assert_eq!(Limited::new(None, Some(2)).pass(&"aa".repeat(32), here), 2);
        assert_eq!(Limited::new(Some(2), None).pass(&"aa".repeat(32), here), 2);
        assert_eq!(Limited::new(None, None).pass(&"aa".repeat(32), here), 20);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let key = |text| key_of_address(text).unwrap();
        assert_eq!(key("2001:db8::1"), key("2001:db8:0:0:ffff::2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key_of_address("here"), None);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let error = |per_author, exempt: &str| {
            let exempt_authors = vec![exempt.to_owned()];
            let exempt_kinds = Vec::new();
            Rules::new(Settings { per_author, per_address: None, exempt_kinds, exempt_authors })
                .err()
                .unwrap()
        };
        let limit = Limit { per_minute: 0.0, burst: 1 };
        assert_eq!(error(Some(limit), ""), "config.per_author.per_minute: want a number above 0");
        assert!(error(None, "alice").starts_with("config.exempt_authors[0]: "));
    }
}
