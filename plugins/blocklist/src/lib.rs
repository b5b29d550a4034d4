//! Refuses events of listed authors, events whose content has a listed word or fits a pattern, and
//! what the public mute lists of some people name.

mod keys;
mod mutes;
mod patterns;
mod rules;
mod words;

use nostr_gateway_plugin::{
    Context, Event, EventFilter, Verdict, config, export_event_filter, log, lookup,
};

use mutes::{MOST_TAGS, MUTE_LIST, Mutes};
use rules::Rules;

/// Seconds after which a mute list is read again.
const REFRESH_S: u64 = 30;

struct Blocklist {
    rules: Rules,
    mutes: Mutes,
    reason: Option<String>,
}

impl EventFilter for Blocklist {
    fn init() -> Result<Self, String> {
        let list = |key| config::optional::<Vec<String>>(key).map(Option::unwrap_or_default);
        let rules = Rules::new(&list("authors")?, &list("words")?, &list("patterns")?)?;
        let refresh = config::optional("mute_lists_refresh_s")?.unwrap_or(REFRESH_S);
        let mut mutes = Mutes::new(&list("mute_lists")?, refresh)?;
        mutes.read_all(tags_of)?;
        log::debug(&format!("{rules}; {mutes}"));
        Ok(Self { rules, mutes, reason: config::optional("reason")? })
    }

    fn evaluate(&mut self, event: Event, context: Context) -> Verdict {
        if !self.mutes.is_empty() {
            self.mutes.refresh(context.received_at, tags_of);
        }
        let refused = self.rules.refuse(&event).or_else(|| self.mutes.refuse(&event));
        self.mutes.heard(&event, context.received_at);
        match refused {
            Some(why) => Verdict::Reject(self.reason.clone().unwrap_or_else(|| why.to_owned())),
            None => Verdict::Accept,
        }
    }
}

/// The newest mute list of an author.
fn tags_of(author: &str) -> Result<Vec<Vec<String>>, lookup::Error> {
    lookup::list_tags(author, MUTE_LIST, MOST_TAGS)
}

export_event_filter!(Blocklist);
