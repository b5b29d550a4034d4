//! Limits how often an author may publish, and how often an address may, with room for a burst.

mod bucket;
mod rules;

use nostr_gateway_plugin::{
    Context, Event, EventFilter, Verdict, config, export_event_filter, kv, log,
};

use rules::{Charge, Rules, Settings};

struct RateLimit {
    rules: Rules,
    /// It was told that there is no room for more.
    is_full: bool,
}

impl EventFilter for RateLimit {
    fn init() -> Result<Self, String> {
        let rules = Rules::new(Settings {
            per_author: config::optional("per_author")?,
            per_address: config::optional("per_address")?,
            exempt_kinds: config::optional("exempt_kinds")?.unwrap_or_default(),
            exempt_authors: config::optional("exempt_authors")?.unwrap_or_default(),
        })?;
        Ok(Self { rules, is_full: false })
    }

    fn evaluate(&mut self, event: Event, context: Context) -> Verdict {
        let charges = match self.rules.charges(&event, &context, kv::get) {
            Ok(charges) => charges,
            Err(text) => return Verdict::Reject(text),
        };
        for Charge { key, value, ttl } in charges {
            // Without room, whoever is new is not counted. The limits of the others hold.
            if kv::set(&key, &value, Some(ttl)).is_err() && !self.is_full {
                self.is_full = true;
                log::warn("too many authors and addresses at once: raise limits.kv_keys, kv_bytes");
            }
        }
        Verdict::Accept
    }
}

export_event_filter!(RateLimit);
