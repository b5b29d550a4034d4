//! From the pipeline's event and context to the records that a plugin sees.

use super::bindings::nostr_gateway::plugin::types;
use crate::{
    pipeline::{Context, Direction, Origin},
    protocol::{Event, TopicName, hex},
};

/// The parts of an event and its context that need another form; made once for all plugins.
pub struct LoweredEvent<'a> {
    event: &'a Event,
    id: String,
    pubkey: String,
    sig: String,
    /// All values of all tags in one row.
    values: Vec<&'a str>,
    /// The keys with which the client that published it has authenticated.
    keys: Vec<String>,
    /// Where that client is.
    address: Option<String>,
}

impl<'a> LoweredEvent<'a> {
    pub fn new(event: &'a Event, origin: &Origin) -> Self {
        let (keys, address) = match origin {
            Origin::Client { viewer, address, .. } => {
                let keys = viewer.keys().iter().map(ToString::to_string).collect();
                // The log does not remember where a client was.
                let known = !address.is_unspecified();
                (keys, known.then(|| address.to_canonical().to_string()))
            }
            _ => (Vec::new(), None),
        };
        Self {
            event,
            id: event.id.to_string(),
            pubkey: event.pubkey.to_string(),
            sig: hex::encode(&event.sig),
            values: event.tags.iter().flatten().map(String::as_str).collect(),
            keys,
            address,
        }
    }

    /// The tags, for [`Self::record`] to borrow.
    pub fn tags(&self) -> Vec<&[&'a str]> {
        let mut rest = self.values.as_slice();
        let cut = |tag: &Vec<String>| {
            let (values, after) = rest.split_at(tag.len());
            rest = after;
            values
        };
        self.event.tags.iter().map(cut).collect()
    }

    /// The keys, for [`context`] to borrow.
    pub fn keys(&self) -> Vec<&str> {
        self.keys.iter().map(String::as_str).collect()
    }

    /// The address, for [`context`] to borrow.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub fn record<'b>(&'b self, tags: &'b [&'b [&'b str]]) -> types::Event<'b> {
        types::Event {
            id: &self.id,
            pubkey: &self.pubkey,
            created_at: self.event.created_at,
            kind: self.event.kind,
            tags,
            content: &self.event.content,
            sig: &self.sig,
        }
    }
}

/// The topics, for [`context`] to borrow.
pub fn names(topics: &[TopicName]) -> Vec<&str> {
    topics.iter().map(TopicName::as_str).collect()
}

pub fn context<'a>(
    context: &'a Context<'_>,
    topics: &'a [&'a str],
    authenticated: &'a [&'a str],
    address: Option<&'a str>,
) -> types::Context<'a> {
    let direction = match context.direction {
        Direction::In => types::Direction::In,
        Direction::ToTopics => types::Direction::ToTopics,
        Direction::ToUpstream(stream) => types::Direction::ToUpstream(stream),
    };
    let (kind, detail) = match context.origin {
        Origin::Client { .. } => (types::OriginKind::Client, ""),
        Origin::Gossip { topic, .. } => (types::OriginKind::Gossip, topic.as_str()),
        // To a plugin it makes no difference how we learned of what we fetched.
        Origin::Fetch { topic, .. } | Origin::Sync { topic, .. } => {
            (types::OriginKind::Fetch, topic.as_str())
        }
        Origin::Import => (types::OriginKind::Import, ""),
        Origin::Upstream { stream, .. } => (types::OriginKind::Upstream, stream.as_ref()),
    };
    types::Context {
        direction,
        origin: types::Origin { kind, detail },
        topics,
        authenticated,
        address,
        received_at: context.received_at,
    }
}
