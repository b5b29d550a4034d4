//! Lets in authors whom some roots follow, or those whom they follow; others are refused, shadowed or
//! have to do work first.

mod build;
mod key;
mod members;
mod rules;
mod work;

use nostr_gateway_plugin::{
    Context, Event, EventFilter, Verdict, config, export_event_filter, lookup, now,
};

use build::Web;
use rules::{Rules, Settings};

struct WebOfTrust {
    rules: Rules,
    web: Web,
}

impl EventFilter for WebOfTrust {
    fn init() -> Result<Self, String> {
        let (rules, reach) = Settings {
            roots: config::required("roots")?,
            hops: config::optional("hops")?,
            min_followers: config::optional("min_followers")?,
            max_authors: config::optional("max_authors")?,
            refresh_s: config::optional("refresh_s")?,
            exempt_kinds: config::optional("exempt_kinds")?,
            unknown: config::optional("unknown")?,
            work_bits: config::optional("work_bits")?,
            on_unready: config::optional("on_unready")?,
            reason: config::optional("reason")?,
        }
        .check()?;
        let mut web = Web::new(reach);
        web.begin(now(), lookup::list_follows);
        Ok(Self { rules, web })
    }

    fn evaluate(&mut self, event: Event, context: Context) -> Verdict {
        self.web.go_on(context.received_at, lookup::list_follows);
        let verdict = self.rules.judge(&event, self.web.has(&event.pubkey));
        self.web.heard(&event, context.received_at);
        verdict
    }
}

export_event_filter!(WebOfTrust);
