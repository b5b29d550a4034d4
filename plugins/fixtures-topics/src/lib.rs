//! Routes by the event's content and lets topics be visited by their names.

use nostr_gateway_plugin::{Context, Event, export_topic_policy, log, topics::TopicPolicy};

struct ByWord;

impl TopicPolicy for ByWord {
    fn init() -> Result<Self, String> {
        log::debug("ready");
        Ok(Self)
    }

    fn topics(&mut self, event: Event, _context: Context) -> Option<Vec<String>> {
        let topics = event.content.strip_prefix("to:")?;
        Some(topics.split_terminator(',').map(str::to_owned).collect())
    }

    fn may_visit(&mut self, topic: String) -> bool {
        assert!(topic != "panic", "told to panic");
        topic.starts_with("open")
    }
}

export_topic_policy!(ByWord);
