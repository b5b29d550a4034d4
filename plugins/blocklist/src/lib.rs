//! Refuses events of listed authors and events whose content has a listed word.

mod rules;

use nostr_gateway_plugin::{
    Context, Event, EventFilter, Verdict, config, export_event_filter, log,
};

use rules::Rules;

struct Blocklist(Rules);

impl EventFilter for Blocklist {
    fn init() -> Result<Self, String> {
        let authors: Vec<String> = config::optional("authors")?.unwrap_or_default();
        let words: Vec<String> = config::optional("words")?.unwrap_or_default();
        let reason: Option<String> = config::optional("reason")?;
        let rules = Rules::new(&authors, &words, reason)?;
        log::debug(&rules.to_string());
        Ok(Self(rules))
    }

    fn evaluate(&mut self, event: Event, _context: Context) -> Verdict {
        match self.0.refuse(&event.pubkey, &event.content) {
            Some(reason) => Verdict::Reject(reason.to_owned()),
            None => Verdict::Accept,
        }
    }
}

export_event_filter!(Blocklist);
