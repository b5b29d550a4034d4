//! Lets in authors whom some roots follow, or those whom they follow; others are refused, shadowed or
//! have to do work first.

mod build;
mod key;
mod members;
mod rules;
mod work;

use nostr_gateway_plugin::{
    Context, Event, EventFilter, Verdict, config, export_event_filter, log, lookup, now,
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
            roots: config::optional("roots")?.unwrap_or_default(),
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
        let mut plugin = Self { rules, web: Web::new(reach) };
        match plugin.web.is_configured() {
            true => plugin.web.begin(now(), lookup::list_follows),
            false => log::warn("config.roots names nobody: every event passes"),
        }
        plugin.tell();
        Ok(plugin)
    }

    fn evaluate(&mut self, event: Event, context: Context) -> Verdict {
        if !self.web.is_configured() {
            return Verdict::Accept;
        }
        self.web.go_on(context.received_at, lookup::list_follows);
        self.tell();
        let verdict = self.rules.judge(&event, self.web.has(&event.pubkey));
        self.web.heard(&event, context.received_at);
        verdict
    }
}

impl WebOfTrust {
    fn tell(&mut self) {
        if let Some(news) = self.web.news() {
            log::info(&news);
        }
    }
}

export_event_filter!(WebOfTrust);
