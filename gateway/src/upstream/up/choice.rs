//! Which events of the log go to a relay.

use std::sync::Arc;

use crate::{
    pipeline::{
        Audience, LogEntry, Origin, Passing, PrivateTopics, UpCursor, origin::is_from_relay,
    },
    protocol::{Event, Filter, TopicName, crossing, kinds},
};

/// What a stream sends to one of its relays.
pub struct Choice {
    pub stream: Arc<str>,
    pub url: Arc<str>,
    pub filter: Filter,
    /// Only what is in these topics; all that everybody may read when there are none.
    pub topics: Vec<TopicName>,
    pub private: PrivateTopics,
}

impl Choice {
    /// Whether this step of the log is a reason to send its event. An event that is in several topics may
    /// be so more than once. `now` in Unix seconds.
    pub fn wants(&self, entry: &LogEntry, from: &UpCursor, now: u64) -> bool {
        // What was stored before the stream began counts by its own time.
        (entry.seq > from.began || entry.event.created_at >= from.since)
            && self.is_in_scope(&entry.audience, entry.topic.as_slice())
            && !is_from_relay(&entry.origin, &self.stream, &self.url)
            && self.may_cross(&entry.event, now)
    }

    /// The same for an ephemeral event.
    pub fn wants_passing(&self, passing: &Passing, now: u64) -> bool {
        let is_theirs = matches!(&passing.origin, Origin::Upstream { url, .. } if *url == self.url);
        !is_theirs
            && self.is_in_scope(&passing.audience, &passing.topics)
            && self.may_cross(&passing.event, now)
    }

    /// Whether everybody may see it, and it became part of what this stream is about.
    fn is_in_scope(&self, audience: &Audience, joined: &[TopicName]) -> bool {
        if self.topics.is_empty() {
            return matches!(audience, Audience::Everybody { .. });
        }
        // A topic may have become private since it was configured here.
        joined.iter().any(|topic| self.topics.contains(topic) && !self.private.contains(topic))
    }

    fn may_cross(&self, event: &Event, now: u64) -> bool {
        // What may not enter a public topic may not go to a relay either.
        kinds::barred_from_public_topics(event, now).is_none()
            && crossing::concerns(&self.filter, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{VerifiedEvent, signing::Author};

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).unwrap()
    }

    fn choice(filter: &str, topics: &[&str]) -> Choice {
        Choice {
            stream: "s".into(),
            url: "wss://a".into(),
            filter: Filter::parse(filter).unwrap(),
            topics: topics.iter().copied().map(topic).collect(),
            private: PrivateTopics::new([(topic("family"), Vec::new())]),
        }
    }

    fn entry(event: Event, topic: Option<TopicName>, audience: Audience, origin: &str) -> LogEntry {
        let event = Arc::new(event);
        LogEntry { seq: 10, event, topic, first: true, audience, origin: origin.into() }
    }

    fn public() -> Audience {
        Audience::first(false)
    }

    const FROM: UpCursor = UpCursor { seq: 0, began: 0, since: 0 };
    const NOW: u64 = 1_700_000_000;

    fn note() -> Event {
        Author::new(1).sign(1_600_000_000, 1, &[], "note")
    }

    #[test]
    fn without_topics_what_everybody_may_read_goes_once() {
        let all = choice("{}", &[]);
        assert!(all.wants(&entry(note(), None, public(), "client"), &FROM, NOW));
        let in_topic = |audience| entry(note(), Some(topic("x")), audience, "topic/x");
        assert!(all.wants(&in_topic(public()), &FROM, NOW));
        assert!(!all.wants(&in_topic(Audience::Nobody), &FROM, NOW), "it joined one more topic");
        let shared = Audience::Everybody { but: vec![topic("family")] };
        assert!(all.wants(&entry(note(), None, shared, "client"), &FROM, NOW), "it became public");
    }

    #[test]
    fn nothing_of_private_topics_goes() {
        let private = Audience::Readers { but: Vec::new() };
        let entry = entry(note(), Some(topic("family")), private, "topic/family");
        for topics in [&[][..], &["family"], &["family", "x"]] {
            assert!(!choice("{}", topics).wants(&entry, &FROM, NOW), "{topics:?}");
        }
    }

    #[test]
    fn with_topics_only_what_is_in_them_goes() {
        let cats = choice("{}", &["cats"]);
        let step = |name, audience| entry(note(), name, audience, "client");
        assert!(cats.wants(&step(Some(topic("cats")), public()), &FROM, NOW));
        assert!(cats.wants(&step(Some(topic("cats")), Audience::Nobody), &FROM, NOW), "it joined");
        assert!(!cats.wants(&step(Some(topic("dogs")), public()), &FROM, NOW));
        assert!(!cats.wants(&step(None, public()), &FROM, NOW));
    }

    #[test]
    fn nothing_goes_back_to_where_it_came_from() {
        let all = choice("{}", &[]);
        let from = |origin: &str| entry(note(), None, public(), origin);
        for own in ["upstream/s/wss://a", "upstream/t/wss://a", "upstream/s"] {
            assert!(!all.wants(&from(own), &FROM, NOW), "{own}");
        }
        assert!(all.wants(&from("upstream/s/wss://b"), &FROM, NOW), "to the other relays it does");
        let passing = |url: &str| Passing {
            event: VerifiedEvent::verify(Author::new(1).sign(NOW, 20_001, &[], "")).unwrap(),
            topics: Vec::new().into(),
            audience: public(),
            origin: Origin::Upstream { stream: "s".into(), url: url.into() },
        };
        assert!(!all.wants_passing(&passing("wss://a"), NOW));
        assert!(all.wants_passing(&passing("wss://b"), NOW));
    }

    #[test]
    fn what_must_stay_stays() {
        let all = choice("{}", &[]);
        let author = Author::new(1);
        let relay = ["relay", "wss://relay.example.org"];
        for (kind, tags, why) in [
            (4, &[][..], "a direct message"),
            (13, &[], "a seal"),
            (1_059, &[], "a gift wrap"),
            (24_133, &[], "remote signing"),
            (22_242, &[], "authentication"),
            (27_235, &[], "authentication over HTTP"),
            (1, &[&["-"][..]], "a protected event"),
            (1, &[&["expiration", "1600000001"]], "an expired event"),
            (62, &[&relay], "a request to vanish from another relay"),
        ] {
            let event = author.sign(1_600_000_000, kind, tags, "");
            assert!(!all.wants(&entry(event, None, public(), "client"), &FROM, NOW), "{why}");
        }
        for (kind, tags) in [(5, &["k", "1"][..]), (62, &["relay", "ALL_RELAYS"])] {
            let event = author.sign(1_600_000_000, kind, &[tags], "");
            assert!(all.wants(&entry(event, None, public(), "client"), &FROM, NOW), "{kind}");
        }
    }

    #[test]
    fn the_filter_and_history_count() {
        let notes = choice(r#"{"kinds":[1]}"#, &[]);
        let reaction = Author::new(1).sign(1_600_000_000, 7, &[], "+");
        assert!(!notes.wants(&entry(reaction, None, public(), "client"), &FROM, NOW));
        let old = entry(note(), None, public(), "client");
        let from = |began, since| UpCursor { seq: 0, began, since };
        assert!(!notes.wants(&old, &from(10, 1_600_000_001), NOW));
        assert!(notes.wants(&old, &from(10, 1_600_000_000), NOW));
        assert!(
            notes.wants(&old, &from(9, 1_700_000_000), NOW),
            "it was stored after the beginning"
        );
    }
}
