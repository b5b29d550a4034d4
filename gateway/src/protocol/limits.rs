//! The cheap checks that come before everything else.

use super::{Event, Reason, kinds, work};

/// Bounds on a single event. Each is announced in the NIP-11 document where it has a name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Canonical JSON, in bytes.
    pub max_event_bytes: usize,
    pub max_event_tags: usize,
    /// How far in the future `created_at` may lie, in seconds.
    pub max_future_s: u64,
    /// How far in the past `created_at` may lie, in seconds; 0 is no bound.
    pub max_past_s: u64,
    /// Proof of work asked of clients (NIP-13), in leading zero bits; 0 is none.
    pub min_pow: u32,
}

impl Limits {
    /// Why the event is refused, or `None`. `now` is in Unix seconds.
    pub fn refusal(&self, event: &Event, now: u64) -> Option<Reason> {
        if event.json().len() > self.max_event_bytes {
            let max = self.max_event_bytes;
            return Some(Reason::invalid(format!("the event is larger than {max} bytes")));
        }
        if event.tags.len() > self.max_event_tags {
            let max = self.max_event_tags;
            return Some(Reason::invalid(format!("the event has more than {max} tags")));
        }
        if event.created_at > now.saturating_add(self.max_future_s) {
            let max = self.max_future_s;
            return Some(Reason::invalid(format!(
                "created_at is more than {max} seconds in the future"
            )));
        }
        if self.max_past_s != 0 && event.created_at < now.saturating_sub(self.max_past_s) {
            let max = self.max_past_s;
            return Some(Reason::invalid(format!(
                "created_at is more than {max} seconds in the past"
            )));
        }
        if event.is_expired(now) {
            return Some(Reason::invalid("the event has expired (NIP-40)"));
        }
        if kinds::is_authentication(event.kind) {
            return Some(Reason::invalid("authentication events are not published (NIP-42)"));
        }
        None
    }

    /// Why a client's event shows too little work, or `None` (NIP-13). A request to vanish needs
    /// none: nobody may be kept from it (NIP-62).
    pub fn refusal_of_work(&self, event: &Event) -> Option<Reason> {
        if event.kind == kinds::VANISH { None } else { work::refusal(event, self.min_pow) }
    }
}
